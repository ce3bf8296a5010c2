import NIOCore

/// Calls when something is due, on its event loop. What is due later than it was calls once too often, and that
/// is found out then: it is put off with each message.
final class WakeTimer: @unchecked Sendable {  // the loop's own
    private let loop: any EventLoop
    private let body: () -> Void
    private var scheduled: Scheduled<Void>?
    private var dueNs = Int64.max

    init(_ loop: any EventLoop, _ body: @escaping () -> Void) {
        self.loop = loop
        self.body = body
    }

    static var nowNs: Int64 { Int64(NIODeadline.now().uptimeNanoseconds) }

    /// - Parameter wakeNs: `.max` for never.
    func arm(at wakeNs: Int64) {
        guard wakeNs < dueNs else { return }
        scheduled?.cancel()
        dueNs = wakeNs
        scheduled = loop.scheduleTask(deadline: .uptimeNanoseconds(UInt64(max(wakeNs, 0)))) {
            [weak self] in self?.fire()
        }
    }

    private func fire() {
        dueNs = .max
        scheduled = nil
        body()
    }

    func cancel() {
        scheduled?.cancel()
        scheduled = nil
        dueNs = .max
    }
}
