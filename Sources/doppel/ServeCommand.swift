import ArgumentParser
import BlockCore
import Daemon
import Settings
import SystemIO

struct Serve: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Take in mirrors of pools on other machines.",
        discussion: """
            Every pool below ROOT can be the target of one primary elsewhere, doppel://HOST:PORT/POOL; one that is
            not there yet is made when a primary adds it as a target. `doppel pair` lets a primary in. Runs in
            the foreground until it is told to end (SIGTERM), and remembers nothing but its pools. A key that was changed
            (`doppel pair --retire`) is taken up by itself, limits in the settings on SIGHUP.

            EXAMPLES
              doppel serve /srv/mirrors --listen 192.0.2.7:7420
              doppel serve /srv/mirrors --without-keys
              doppel target add /srv/vms doppel://192.0.2.7:7420/vms
            """)
    @Argument(
        help: "The folder that the pools are in; without it, the one of the settings.",
        completion: .directory)
    var root: String?
    @Option(
        help: ArgumentHelp(
            "Address and port, such as 192.0.2.7:7420; may be given twice.",
            discussion: "Default: those of the settings, or 127.0.0.1:7420."))
    var listen: [String] = []
    @Flag(help: "Ask nobody for a key, and encrypt nothing: on 127.0.0.0/8 alone.")
    var withoutKeys = false
    @Option(
        help: "How long each mirror can be mounted as it was, such as 1h or 2d; 0s for not at all.")
    var history = "1h"
    @OptionGroup var settings: SettingsOption

    func run() throws {
        try exiting {
            var request = try request(try settings.load())
            let command = self
            request.reading = { try command.request(try command.settings.load()) }
            let root = request.root
            try ServeDaemon.run(request) { places in
                let list = places.map(\.description).joined(separator: ", ")
                Output.error("doppel: serves \(root) at \(list)")
            }
        }
    }

    private func request(_ settings: Settings) throws -> ServeRequest {
        guard let root = root ?? settings.serve.root else {
            throw ValidationError("the folder that the pools are in is missing")
        }
        var places = settings.serve.listen.map { HostPort(host: $0.host, port: $0.port) }
        if !listen.isEmpty {
            places = try listen.map { text in
                guard let place = HostPort(text) else {
                    throw ValidationError("--listen is such as 127.0.0.1:7420 or [::1]:7420")
                }
                return place
            }
        }
        var request = ServeRequest(root: root, listen: places)
        guard let historyMs = Duration.milliseconds(parsing: history) else {
            throw ValidationError("--history is such as 1h or 2d, or 0s for none")
        }
        request.historyMs = historyMs
        request.mostPools = settings.serve.pools
        request.limits.connections = settings.serve.connections
        request.limits.connectionsOfAPeer = settings.serve.connectionsPerPeer
        request.limits.memoryBytes = settings.serve.memoryBytes
        request.limits.bytesPerSecond = settings.serve.bytesPerSecondOfAPeer
        if !withoutKeys {
            request.identity = ServeRequest.HostPlaces(
                stateDirectory: settings.stateDirectory,
                authorizedPeersPath: settings.authorizedPeersPath)
        }
        return request
    }
}
