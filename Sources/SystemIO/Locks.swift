import Glibc

/// A pthread mutex at a fixed address. Chosen over `Synchronization.Mutex` because thread
/// sanitizer understands it, and over a closure-free API because nobody can forget the unlock.
public final class Lock: @unchecked Sendable {  // the pointer is constant; pthreads guard the rest
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)

    public init() { pthread_mutex_init(mutex, nil) }
    deinit {
        pthread_mutex_destroy(mutex)
        mutex.deallocate()
    }

    @inline(__always) public func lock() { pthread_mutex_lock(mutex) }
    @inline(__always) public func unlock() { pthread_mutex_unlock(mutex) }

    @inline(__always)
    public func withLock<T, E: Error>(_ body: () throws(E) -> T) throws(E) -> T {
        lock()
        defer { unlock() }
        return try body()
    }

    fileprivate var raw: UnsafeMutablePointer<pthread_mutex_t> { mutex }
}

/// A condition for use with one ``Lock``, which the waiter holds.
public final class Condition: @unchecked Sendable {  // as Lock
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    public init() {
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }
    deinit {
        pthread_cond_destroy(condition)
        condition.deallocate()
    }

    public func wait(_ lock: Lock) { pthread_cond_wait(condition, lock.raw) }

    /// - Returns: false when the time passed first.
    public func wait(_ lock: Lock, timeoutMs: Int64) -> Bool {
        var deadline = timespec()
        clock_gettime(CLOCK_MONOTONIC, &deadline)
        let ns = Int64(deadline.tv_nsec) + (timeoutMs % 1000) * 1_000_000
        deadline.tv_sec += Int(timeoutMs / 1000 + ns / 1_000_000_000)
        deadline.tv_nsec = Int(ns % 1_000_000_000)
        return pthread_cond_timedwait(condition, lock.raw, &deadline) == 0
    }

    public func signal() { pthread_cond_signal(condition) }
    public func broadcast() { pthread_cond_broadcast(condition) }
}

/// Many readers or one writer; a waiting writer goes before new readers, so that the cut of a
/// snapshot comes soon under steady writes.
public final class ReadWriteLock: @unchecked Sendable {  // as Lock
    private let rwlock = UnsafeMutablePointer<pthread_rwlock_t>.allocate(capacity: 1)

    public init() {
        var attributes = pthread_rwlockattr_t()
        pthread_rwlockattr_init(&attributes)
        pthread_rwlockattr_setkind_np(
            &attributes, Int32(PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP))
        pthread_rwlock_init(rwlock, &attributes)
        pthread_rwlockattr_destroy(&attributes)
    }
    deinit {
        pthread_rwlock_destroy(rwlock)
        rwlock.deallocate()
    }

    @inline(__always) public func lockRead() { pthread_rwlock_rdlock(rwlock) }
    @inline(__always) public func lockWrite() { pthread_rwlock_wrlock(rwlock) }
    @inline(__always) public func unlock() { pthread_rwlock_unlock(rwlock) }

    @inline(__always)
    public func withRead<T, E: Error>(_ body: () throws(E) -> T) throws(E) -> T {
        lockRead()
        defer { unlock() }
        return try body()
    }

    @inline(__always)
    public func withWrite<T, E: Error>(_ body: () throws(E) -> T) throws(E) -> T {
        lockWrite()
        defer { unlock() }
        return try body()
    }
}
