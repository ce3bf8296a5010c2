import ArgumentParser
import Daemon
import Glibc
import Identity
import Settings
import SystemIO

struct Events: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show what happened to a pool: recoveries, deletions, repairs, quarantine.",
        discussion: """
            With --follow, of a mounted pool, what happens from now on as it happens, until the pool
            is unmounted; with --json one object a line.

            With --host, of no pool: which other hosts were paired with this one, and who was refused.

            EXAMPLES
              doppel events /srv/vms --limit 5
              doppel events /mnt/vms --follow
              doppel events --host
            """)
    @Argument(help: "The pool's directory, or where it is mounted.", completion: .directory)
    var pool: String?
    @Flag(help: "What happened to this host's pairing.") var host = false
    @Option(help: "How many, the newest first.") var limit = 20
    @Flag(help: "Go on with what happens.") var follow = false
    @OptionGroup var settings: SettingsOption
    @OptionGroup var output: JSONFlag

    func validate() throws {
        guard (pool == nil) == host else { throw ValidationError("say POOL, or --host") }
        guard !host || !follow else {
            throw ValidationError("--follow is for the events of a mounted pool")
        }
    }

    func run() throws {
        try exiting {
            guard let pool else { return try showHost() }
            if follow { return try goOn(pool) }
            let events =
                try PoolAccess.perform(ControlRequest(.events) { $0.limit = limit }, on: pool)
                .events ?? []
            if output.json { return Output.json(events) }
            Output.table(
                ["TIME", "KIND", "SUBJECT", "MESSAGE"],
                events.map { [Output.time($0.atNs), $0.kind, $0.subject, $0.message] })
        }
    }

    private func showHost() throws {
        let state = StateDirectory(path: try settings.load().stateDirectory)
        let events = try HostEvents(state).newest(limit)
        if output.json { return Output.json(events) }
        Output.table(
            ["TIME", "KIND", "SUBJECT", "MESSAGE"],
            events.map { [Output.time($0.atNs), $0.kind, $0.subject, $0.message] })
    }

    private func goOn(_ pool: String) throws {
        let location = try PoolLocation.find(pool)
        guard let socket = location.owner?.socketPath, let client = try? ControlClient(path: socket)
        else {
            throw ControlFailure(.failed, "\(pool) is not mounted: nothing happens to it")
        }
        var last = try client.send(ControlRequest(.events) { $0.limit = 1 }).events?.first?.id ?? 0
        while true {
            let events: [EventInfo]
            do {
                events = try client.send(ControlRequest(.events) { $0.after = last }).events ?? []
            } catch is NoAnswer { return } catch let failure as ControlFailure
                where failure.kind == "draining"
            { return }
            for event in events {
                last = event.id
                if output.json {
                    print(String(decoding: JSONLine.encode(event), as: UTF8.self))
                } else {
                    print(
                        "\(Output.time(event.atNs))  \(event.kind)  \(event.subject)  "
                            + event.message)
                }
            }
            fflush(nil)
            Pause.microseconds(500_000)
        }
    }
}

struct Jobs: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show the long work of a mounted pool, or stop one.",
        discussion: """
            EXAMPLES
              doppel jobs /mnt/vms
              doppel jobs /mnt/vms --cancel 3
            """)
    @OptionGroup var pool: PoolArgument
    @Option(help: "Stop the job with this number.") var cancel: Int?
    @OptionGroup var output: JSONFlag

    func run() throws {
        try exiting {
            if let cancel {
                _ = try PoolAccess.perform(
                    ControlRequest(.jobCancel) { $0.job = cancel }, on: pool.pool)
                return
            }
            let jobs = try PoolAccess.perform(ControlRequest(.jobList), on: pool.pool).jobs ?? []
            if output.json { return Output.json(jobs) }
            Output.table(
                ["JOB", "KIND", "PHASE", "DONE", "OF", "LEFT"],
                jobs.map {
                    [
                        "\($0.job)", $0.kind, $0.phase, Output.size($0.doneBytes),
                        Output.size($0.totalBytes),
                        $0.etaMs.map { Progress.duration(seconds: $0 / 1000) } ?? "",
                    ]
                })
        }
    }
}
