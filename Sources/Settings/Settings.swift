// Settings of this host, from a TOML file. What belongs to a pool (targets, modes) stands in its catalog alone.
//
// A file with a mistake is no file: whoever reads it starts nothing with half of what was wanted.

import BlockCore
import Identity
import Logging
import SystemIO

package struct Settings: Sendable, Hashable {
    /// The host's key, and by default the list of its peers.
    package var stateDirectory = StateDirectory.defaultPath
    /// nil: in the state directory.
    package var authorizedPeers: String?
    package var logLevel = Logger.Level.info
    package var serve = ServeSettings()

    package init() {}

    package var authorizedPeersPath: String {
        authorizedPeers ?? stateDirectory + "/authorized_peers"
    }
}

/// What `doppel serve` may give to whom.
package struct ServeSettings: Sendable, Hashable {
    /// The folder whose pools are served; nil: to be given on the command line.
    package var root: String?
    package var listen = [HostPort(host: "127.0.0.1", port: HostPort.defaultPort)]
    package var connections = 128
    package var connectionsPerPeer = 64
    /// That are open at a time.
    package var pools = 64
    /// Of all connections together, for what was received and waits to be written.
    package var memoryBytes: UInt64 = 2 << 30
    /// What one peer may send, in all its connections; nil: no limit.
    package var bytesPerSecondOfAPeer: UInt64?

    package init() {}
}

package struct SettingsError: Error, CustomStringConvertible {
    package var path: String
    package var mistakes: [SettingsMistake]
    /// The file cannot be read at all.
    package var cause: SystemError?

    package var description: String {
        if let cause { return "cannot read settings: \(cause)" }
        return mistakes.map { "\(path):\($0.line): \($0.message)" }.joined(separator: "\n")
    }
}

package enum SettingsFile {
    /// `$DOPPEL_CONFIG`; without it `/etc/doppel/doppel.toml` for root; else `$XDG_CONFIG_HOME/doppel/doppel.toml`, or below `~/.config`.
    package static var defaultPath: String {
        if let file = ProcessControl.environment("DOPPEL_CONFIG"), !file.isEmpty { return file }
        if ProcessControl.isRoot { return "/etc/doppel/doppel.toml" }
        if let folder = ProcessControl.environment("XDG_CONFIG_HOME"), folder.hasPrefix("/") {
            return folder + "/doppel/doppel.toml"
        }
        return (ProcessControl.environment("HOME") ?? "") + "/.config/doppel/doppel.toml"
    }

    /// - Parameter path: nil: the default one, if it is there.
    package static func load(
        _ path: String?, disk: Disk = LinuxDisk()
    ) throws(SettingsError) -> Settings {
        let file = path ?? defaultPath
        let bytes: [UInt8]
        do throws(SystemError) { bytes = try disk.readAll(file) } catch {
            if path == nil, error.isNotFound { return Settings() }
            throw SettingsError(path: file, mistakes: [], cause: error)
        }
        let (settings, mistakes) = parse(bytes)
        guard mistakes.isEmpty else { throw SettingsError(path: file, mistakes: mistakes) }
        return settings
    }

    package static func parse(_ bytes: [UInt8]) -> (Settings, [SettingsMistake]) {
        var settings = Settings()
        var reader = SettingsReader(TOMLDocument(bytes))
        let folder = "an absolute path"
        if let path = reader.text("state-directory", folder, absolute) {
            settings.stateDirectory = path
        }
        settings.authorizedPeers = reader.text("authorized-peers", folder, absolute)
        let levels = Logger.Level.allCases.map(\.rawValue).joined(separator: ", ")
        if let level = reader.text("log-level", "one of \(levels)", Logger.Level.init(rawValue:)) {
            settings.logLevel = level
        }
        serve(&reader, &settings.serve)
        return (settings, reader.finish())
    }

    private static func serve(_ reader: inout SettingsReader, _ serve: inout ServeSettings) {
        serve.root = reader.text("serve.root", "an absolute path", absolute)
        if let listen = reader.texts(
            "serve.listen", "an address such as 127.0.0.1:7420 or [::1]:7420",
            { HostPort($0) })
        {
            serve.listen = listen
        }
        if let count = reader.number("serve.connections", in: 1...65536) {
            serve.connections = count
        }
        if let count = reader.number("serve.connections-per-peer", in: 1...1024) {
            serve.connectionsPerPeer = count
        }
        if let count = reader.number("serve.pools", in: 1...4096) { serve.pools = count }
        // Below, not even one connection gets its credit (`docs/wire-protocol.md`).
        if let bytes = reader.bytes("serve.memory", "a size such as 2GiB", in: 64 << 20...1 << 40) {
            serve.memoryBytes = bytes
        }
        serve.bytesPerSecondOfAPeer = reader.bytes(
            "serve.rate-per-peer", "a rate such as 20MiB/s", in: 64 << 10...1 << 40, perSecond: true
        )
    }

    private static func absolute(_ text: String) -> String? {
        text.hasPrefix("/") && !text.utf8.contains(0) ? text : nil
    }
}
