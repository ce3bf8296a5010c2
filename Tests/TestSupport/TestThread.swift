import Glibc

/// A thread whose result is waited for.
/// Unchecked: the result is written by the thread, and read after the join.
package final class TestThread<Result: Sendable>: @unchecked Sendable {
    private var thread = pthread_t()
    private var result: Swift.Result<Result, any Error>?
    private let body: @Sendable () throws -> Result

    package init(_ body: @escaping @Sendable () throws -> Result) {
        self.body = body
        pthread_create(
            &thread, nil,
            { raw in
                let box = Unmanaged<AnyThread>.fromOpaque(raw!).takeRetainedValue()
                box.run()
                return nil
            },
            Unmanaged.passRetained(AnyThread { [self] in result = .init { try self.body() } })
                .toOpaque())
    }

    package func join() throws -> Result {
        pthread_join(thread, nil)
        return try result!.get()
    }
}

private final class AnyThread {
    package let run: () -> Void
    package init(_ run: @escaping () -> Void) { self.run = run }
}
