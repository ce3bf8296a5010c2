import ArgumentParser
import BlockCore
import Daemon
import Pool
import SystemIO

struct Wait: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Wait until targets hold everything that was written before.",
        discussion: """
            Returns when every target holds, durably, what was acknowledged before the call. Exit
            code 4 when the time passes first.

            EXAMPLES
              doppel wait /srv/vms
              doppel wait /srv/vms --target /mnt/usb/vms-mirror --timeout 10m
            """)
    @OptionGroup var pool: PoolArgument
    @Option(help: "One target; without it, all of them.", completion: .directory)
    var target: String?
    @Option(help: "How long to wait, such as 30s or 10m; without it, as long as it takes.")
    var timeout: String?

    func run() throws {
        var request = ControlRequest(.wait)
        if let timeout {
            guard let timeoutMs = Duration.milliseconds(parsing: timeout) else {
                throw ValidationError("--timeout is such as 30s or 10m")
            }
            request.arguments?.timeoutMs = timeoutMs
        }
        if let target {
            request.arguments?.target = TargetSpecification(address: target).absolute
        }
        let asked = request
        try exiting { _ = try PoolAccess.perform(asked, on: pool.pool) }
    }
}
