import CLinux
import Glibc

/// A thread that can be waited for.
public final class WorkerThread: @unchecked Sendable {  // `handle` is written before start returns
    private var handle = pthread_t()
    private final class Box {
        let name: String
        let body: @Sendable () -> Void
        init(_ name: String, _ body: @escaping @Sendable () -> Void) {
            self.name = name
            self.body = body
        }
    }

    /// - Precondition: the system can start a thread; without one nothing here can go on.
    public static func start(_ name: String, _ body: @escaping @Sendable () -> Void) -> WorkerThread
    {
        let thread = WorkerThread()
        let box = Unmanaged.passRetained(Box(name, body)).toOpaque()
        let result = pthread_create(
            &thread.handle, nil,
            { raw in
                let box = Unmanaged<Box>.fromOpaque(raw!).takeRetainedValue()
                _ = clx_set_thread_name(box.name)
                box.body()
                return nil
            }, box)
        precondition(result == 0, "cannot start thread \(name): \(SystemError.message(result))")
        return thread
    }

    public func join() { pthread_join(handle, nil) }
    /// Instead of ``join()``: somebody else knows when it is over.
    public func detach() { pthread_detach(handle) }
}

/// How the calling thread stands beside the others of the machine. Work in bulk must not take the
/// processor from threads that a guest waits for; how much of it is done is the same where nobody else
/// wants it.
public struct ThreadPriority: ~Copyable {
    private static let bulkNice: Int32 = 15
    private var isBulk = false
    /// Whoever may not raise itself again never lowers itself: a target's stream would stay slow.
    private var mayReturn: Bool

    /// - Parameter returns: the thread does other work as well.
    public init(returns: Bool) {
        mayReturn = !returns || (clx_set_thread_nice(1) == 0 && clx_set_thread_nice(0) == 0)
    }

    /// A system call only where it changes.
    public mutating func set(bulk: Bool) {
        guard bulk != isBulk, mayReturn else { return }
        isBulk = bulk
        mayReturn = clx_set_thread_nice(bulk ? Self.bulkNice : 0) == 0
    }
}

/// What a process that serves a disk asks of the kernel.
public enum ProcessPolicy {
    /// PR_SET_IO_FLUSHER: memory this process allocates must not wait for its own write-back.
    /// - Returns: false where the kernel refuses (no CAP_SYS_RESOURCE, or before 5.6).
    public static func becomeIOFlusher() -> Bool { clx_set_io_flusher() == 0 }

    /// Raises the soft limit of open files to the hard one: each layer may hold three.
    public static func raiseFileLimit() { _ = clx_raise_file_limit() }
}

public enum SystemRandom {
    public static func bytes(_ count: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let result = bytes.withUnsafeMutableBytes { clx_random($0.baseAddress, $0.count) }
        precondition(result == 0, "getrandom failed: the kernel promises it does not")
        return bytes
    }
}

/// Zeroed memory that costs a page only where it is touched.
public struct LazyMemory: @unchecked Sendable {  // an address; the owner decides who may touch it
    public let base: UnsafeMutableRawPointer
    public let lengthBytes: Int

    public init(lengthBytes: Int) {
        guard let base = clx_map_zeroed(lengthBytes) else {
            preconditionFailure("out of address space for \(lengthBytes) bytes")
        }
        self.base = base
        self.lengthBytes = lengthBytes
    }

    public func free() { clx_unmap(base, lengthBytes) }
}

public enum Pause {
    public static func microseconds(_ count: UInt32) { usleep(count) }
}
