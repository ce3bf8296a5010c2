import ArgumentParser
import Daemon
import Identity
import Settings
import SystemIO

struct SettingsOption: ParsableArguments {
    @Option(
        name: .customLong("config"),
        help: "A file of settings in place of the host's own.",
        completion: .file(extensions: ["toml"]))
    var file: String?

    /// From here on the log says as much as they want.
    func load() throws -> Settings {
        let settings = try SettingsFile.load(file)
        StandardErrorLog.level.withLock { $0 = settings.logLevel }
        return settings
    }
}

struct Config: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "The settings of this host.",
        discussion: """
            They stand in /etc/doppel/doppel.toml; a user's own in ~/.config/doppel/doppel.toml. What belongs
            to a pool, such as its targets, stands in the pool (`doppel target`).

            EXAMPLE
              doppel config check
            """,
        subcommands: [ConfigCheck.self])
}

struct ConfigCheck: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "check",
        abstract: "Say every mistake in the settings, and in the list of peers, with its line.",
        discussion: """
            A program that reads settings with a mistake does not start.

            EXAMPLES
              doppel config check
              doppel config check new.toml && mv new.toml /etc/doppel/doppel.toml

            EXIT CODES
              0  all is well   1  there are mistakes
            """)
    @Argument(
        help: "The file; the host's own where none is named.",
        completion: .file(extensions: ["toml"]))
    var file: String?
    @OptionGroup var output: JSONFlag

    private struct Line: Encodable {
        var file: String
        var line: Int
        var message: String
    }

    func run() throws {
        try exiting {
            var mistakes: [Line] = []
            var settings = Settings()
            do throws(SettingsError) { settings = try SettingsFile.load(file) } catch {
                if error.cause != nil { throw error }
                mistakes = error.mistakes.map {
                    Line(file: error.path, line: $0.line, message: $0.message)
                }
            }
            let peers = PeerFile(
                path: settings.authorizedPeersPath,
                state: StateDirectory(path: settings.stateDirectory))
            if mistakes.isEmpty {
                mistakes = try peers.load().mistakes.map {
                    Line(file: peers.path, line: $0.line, message: $0.message)
                }
            }
            if output.json {
                Output.json(mistakes)
            } else {
                for each in mistakes { print("\(each.file):\(each.line): \(each.message)") }
                if mistakes.isEmpty { print("no mistakes in \(file ?? SettingsFile.defaultPath)") }
            }
            if !mistakes.isEmpty { throw ExitCode(ExitKind.failed.rawValue) }
        }
    }
}
