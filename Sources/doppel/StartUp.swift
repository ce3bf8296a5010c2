import ArgumentParser
import Glibc
import Logging
import Synchronization
import SystemIO

enum StartUp {
    static func run(_ arguments: [String]) -> Never {
        ProcessControl.ignoreFileSizeSignal()
        LoggingSystem.bootstrap { label in StandardErrorLog(label: label) }
        let name = arguments.first?.split(separator: "/").last.map(String.init) ?? "doppel"
        let rest = Array(arguments.dropFirst())
        let isHelper = name.hasPrefix("mount.")
        if isHelper, MountHelper.isFake(rest) { exit(0) }
        let words = isHelper ? MountHelper.translate(rest) : rest
        do {
            var command = try Doppel.parseAsRoot(words)
            try command.run()
            exit(0)
        } catch let code as ExitCode {
            exit(code.rawValue)
        } catch {
            let code = Doppel.exitCode(for: error)
            let text = Doppel.fullMessage(for: error)
            if code == .success {
                print(text)
                exit(0)
            }
            Output.error(text)
            // The library says 64 for a command line that it does not understand; ours is 2.
            exit(code == .validationFailure ? 2 : code.rawValue)
        }
    }
}

/// `mount.fuse.doppel POOL MNT [-sfnv] [-N ns] [-t type] -o OPTIONS` in our own words.
enum MountHelper {
    /// `mount -f`: everything but the mount itself.
    static func isFake(_ arguments: [String]) -> Bool {
        zip([""] + arguments, arguments).contains {
            $1 == "-f" && !["-o", "-t", "-N"].contains($0)
        }
    }

    static func translate(_ arguments: [String]) -> [String] {
        var words = ["mount"]
        var rest = arguments[...]
        while let word = rest.popFirst() {
            switch word {
            case "-o": if let value = rest.popFirst() { words += ["--options", value] }
            case "-t", "-N": _ = rest.popFirst()
            case "-s": words.append("--sloppy")
            case "-f", "-n", "-v": break
            default: words.append(word)
            }
        }
        return words
    }
}

/// One line an event, with the time where no journal adds it.
struct StandardErrorLog: LogHandler {
    let label: String
    var metadata: Logger.Metadata = [:]
    /// Of the whole program: loggers are made before anybody has read the settings.
    static let level = Mutex(Logger.Level.info)
    var logLevel: Logger.Level {
        get { Self.level.withLock { $0 } }
        set { Self.level.withLock { $0 = newValue } }
    }

    init(label: String) { self.label = label }

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        Output.error("\(Output.timeNow()) \(event.level) \(label): \(event.message)")
    }
}
