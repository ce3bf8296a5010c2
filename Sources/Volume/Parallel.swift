import Synchronization
import SystemIO

/// A few threads over a list; for file creation and syncs that the disk can take side by side.
enum Parallel {
    static func map<Element: Sendable, T: Sendable>(
        _ elements: [Element], threads: Int,
        _ body: @escaping @Sendable (Element) throws(VolumeError) -> T
    ) throws(VolumeError) -> [T] {
        if elements.count < 4 || threads < 2 {
            var results: [T] = []
            for element in elements { results.append(try body(element)) }
            return results
        }
        let shared = Shared<T>(count: elements.count)
        let workers = (0..<min(threads, elements.count)).map { number in
            WorkerThread.start("doppel-par-\(number)") {
                while let index = shared.next() {
                    do throws(VolumeError) {
                        shared.finish(index, .success(try body(elements[index])))
                    } catch { shared.finish(index, .failure(error)) }
                }
            }
        }
        for worker in workers { worker.join() }
        var results: [T] = []
        for result in shared.results { results.append(try result!.get()) }
        return results
    }

    private final class Shared<T: Sendable>: @unchecked Sendable {  // fields are under `lock`
        private let lock = Lock()
        private var position = 0
        private(set) var results: [Result<T, VolumeError>?]

        init(count: Int) { results = Array(repeating: nil, count: count) }

        func next() -> Int? {
            lock.withLock {
                guard position < results.count else { return nil }
                defer { position += 1 }
                return position
            }
        }
        func finish(_ index: Int, _ result: Result<T, VolumeError>) {
            lock.withLock { results[index] = result }
        }
    }
}
