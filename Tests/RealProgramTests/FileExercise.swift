// Random operations on one file through the mount and on the bytes it has to hold, as a program
// that uses everything a file can do.

import Glibc
import MountCalls
import TestSupport

struct FileExercise {
    /// A file is small, so that its ends, blocks and edges meet often.
    static let maxBytes = 600_000
    enum Step: CaseIterable {
        case write, append, direct, synchronous, mapped, truncate, punch, zero, allocate, read
        case readMapped, seek, flush
        /// Common ones come more often.
        static let weighted: [Step] =
            allCases + [.write, .write, .write, .read, .read, .append, .punch, .mapped]
    }

    var path: String
    var random: SeededRandom
    var model = CrashBytes()
    /// Written through a mapping and not synced since: only the kernel knows these pages.
    private(set) var hasDirtyPages = false
    /// What was done last, for the message of a failure.
    private(set) var history: [String] = []

    init(path: String, random: SeededRandom) {
        self.path = path
        self.random = random
    }

    private mutating func note(_ text: String) {
        history.append(text)
        if history.count > 12 { history.removeFirst() }
    }

    private func failed(_ text: String) -> Failure {
        Failure("\(path): \(text); the last steps: \(history.joined(separator: ", "))")
    }

    /// - Parameter allowed: what this kind of mount can do.
    /// - Returns: whether everything written so far is durable.
    @discardableResult
    mutating func step(_ allowed: [Step] = Step.weighted) throws -> Bool {
        let step = allowed.randomElement(using: &random)!
        switch step {
        case .write: try write(O_RDWR)
        case .append: try append()
        case .direct: try writeDirect()
        case .synchronous:
            try write(O_RDWR | (random.chance(50) ? O_SYNC : O_DSYNC))
            // It covers what is mapped only where it met those pages.
            if hasDirtyPages { return false }
            model.flushed()
            return true
        case .mapped: try writeMapped()
        case .truncate: try truncate()
        case .punch: try punch()
        case .zero: try zero()
        case .allocate: try allocate()
        case .read: try read()
        case .readMapped: try readMapped()
        case .seek: try seek()
        case .flush:
            note("fsync")
            try TestFile(path, random.chance(50) ? O_RDONLY : O_RDWR).sync()
            allIsDurable()
            return true
        }
        return false
    }

    /// Somebody made all of the file durable.
    mutating func allIsDurable() {
        model.flushed()
        hasDirtyPages = false
    }

    /// The file has got this content by other means than writing, durably.
    mutating func take(_ content: [UInt8], _ how: String) {
        note(how)
        model.replace(with: content)
        hasDirtyPages = false
    }

    mutating func resized(to size: Int) {
        note("resize \(size)")
        model.resize(to: size)
    }

    /// Reads all of it.
    func verify(_ when: String, afterCrash: Bool = false) throws {
        if let objection = model.objection(to: try contents(path), afterCrash: afterCrash) {
            throw failed("\(when): \(objection)")
        }
    }

    // MARK: Writing

    /// Anywhere in the file, or a little past its end.
    private mutating func place(longest: Int) -> (offset: Int, count: Int) {
        let count = 1 + random.below(random.chance(20) ? longest : min(longest, 9000))
        let limit = min(model.count + (random.chance(15) ? 50_000 : 1), Self.maxBytes - count)
        return (random.below(limit), count)
    }

    private mutating func write(_ flags: Int32) throws {
        let (offset, count) = place(longest: 120_000)
        note("write \(offset)+\(count)")
        let data = NoiseSource.slice(count, &random)
        try TestFile(path, flags).write(Array(data), at: offset)
        model.write(data, at: offset)
    }

    private mutating func append() throws {
        let count = 1 + random.below(5000)
        guard model.count + count < Self.maxBytes else { return }
        note("append \(count) to \(model.count)")
        let data = NoiseSource.slice(count, &random)
        let file = try TestFile(path, O_WRONLY | O_APPEND)
        guard Glibc.write(file.fd, Array(data), count) == count else {
            throw failed("append: errno \(errno)")
        }
        model.write(data, at: model.count)
    }

    private mutating func writeDirect() throws {
        let blocks = 1 + random.below(16)
        let offset = random.below(model.count / 4096 + 2) * 4096
        guard offset + blocks * 4096 <= Self.maxBytes else { return }
        note("direct \(offset)+\(blocks * 4096)")
        let data = NoiseSource.slice(blocks * 4096, &random)
        var memory: UnsafeMutableRawPointer?
        posix_memalign(&memory, 4096, data.count)
        defer { free(memory) }
        data.withUnsafeBytes { memory!.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        let file = try TestFile(path, O_RDWR, direct: true)
        guard pwrite(file.fd, memory!, data.count, offset) == data.count else {
            throw failed("direct write: errno \(errno)")
        }
        model.write(data, at: offset)
        memset(memory!, 0, data.count)
        guard pread(file.fd, memory!, data.count, offset) == data.count,
            data.withUnsafeBytes({ memcmp($0.baseAddress!, memory!, data.count) }) == 0
        else { throw failed("a direct read gives something else than was written") }
    }

    private mutating func writeMapped() throws {
        guard model.count > 0 else { return }
        let offset = random.below(model.count)
        let count = 1 + random.below(min(model.count - offset, 20_000))
        note("mapped \(offset)+\(count)")
        let data = NoiseSource.slice(count, &random)
        let file = try TestFile(path, O_RDWR)
        let size = model.count
        try withMapping(of: file, size, writable: true) { map in
            data.withUnsafeBytes {
                (map + offset).copyMemory(from: $0.baseAddress!, byteCount: count)
            }
        }
        model.write(data, at: offset)
        // An msync is a flush; without one the pages go their own way, soon.
        if random.chance(50) {
            try file.sync()
            allIsDurable()
        } else {
            hasDirtyPages = true
        }
    }

    // MARK: Space

    private mutating func truncate() throws {
        let size = random.chance(20) ? 0 : random.below(min(model.count * 5 / 4 + 5000, 500_000))
        note("truncate \(size)")
        if random.chance(50) {
            let file = try TestFile(path, O_RDWR)
            guard ftruncate(file.fd, size) == 0 else { throw failed("truncate: errno \(errno)") }
        } else if Glibc.truncate(path, size) != 0 {
            throw failed("truncate: errno \(errno)")
        }
        model.resize(to: size)
        if try status(path).st_size != size { throw failed("the size is another") }
    }

    private mutating func punch() throws {
        let (offset, count) = place(longest: 200_000)
        note("punch \(offset)+\(count)")
        let file = try TestFile(path, O_RDWR)
        let result = mc_fallocate(
            file.fd, Int32(MC_PUNCH_HOLE | MC_KEEP_SIZE), Int64(offset), Int64(count))
        guard result == 0 else { throw failed("punch: \(result)") }
        model.zero(offset..<offset + count)
    }

    private mutating func zero() throws {
        let (offset, count) = place(longest: 100_000)
        let keeps = random.chance(50)
        note("zero \(offset)+\(count) keep=\(keeps)")
        let file = try TestFile(path, O_RDWR)
        let mode = Int32(MC_ZERO_RANGE) | (keeps ? Int32(MC_KEEP_SIZE) : 0)
        let result = mc_fallocate(file.fd, mode, Int64(offset), Int64(count))
        guard result == 0 else { throw failed("zero: \(result)") }
        if !keeps, offset + count > model.count { model.resize(to: offset + count) }
        model.zero(offset..<offset + count)
    }

    private mutating func allocate() throws {
        let (offset, count) = place(longest: 60_000)
        let keeps = random.chance(50)
        note("allocate \(offset)+\(count) keep=\(keeps)")
        let file = try TestFile(path, O_RDWR)
        let result = mc_fallocate(
            file.fd, keeps ? Int32(MC_KEEP_SIZE) : 0, Int64(offset), Int64(count))
        guard result == 0 else { throw failed("allocate: \(result)") }
        if !keeps, offset + count > model.count { model.resize(to: offset + count) }
    }

    // MARK: Reading

    private mutating func read() throws {
        let (offset, count) = place(longest: 200_000)
        note("read \(offset)+\(count)")
        let found = try TestFile(path, O_RDONLY).read(count, at: offset)
        let range = (offset..<offset + count).clamped(to: 0..<model.count)
        guard found.elementsEqual(model.bytes[range]) else {
            throw failed("a read gives other bytes")
        }
    }

    private mutating func readMapped() throws {
        guard model.count > 0 else { return }
        note("read mapped")
        let file = try TestFile(path, O_RDONLY)
        let size = model.count
        let isSame = try withMapping(of: file, size, writable: false) { map in
            model.bytes.withUnsafeBytes { memcmp($0.baseAddress!, map, size) } == 0
        }
        if !isSame { throw failed("a mapping shows other bytes") }
    }

    /// What is called a hole reads as zeros: a copy that skips it loses nothing.
    private mutating func seek() throws {
        note("seek")
        let file = try TestFile(path, O_RDONLY)
        var position = 0
        while position < model.count {
            let data = mc_seek_data(file.fd, Int64(position))
            let end = data == -Int64(ENXIO) ? model.count : Int(data)
            guard end >= position else { throw failed("SEEK_DATA \(position): \(data)") }
            guard model.bytes[position..<end].allSatisfy({ $0 == 0 }) else {
                throw failed("data is taken for a hole in \(position)..<\(end)")
            }
            guard end < model.count else { return }
            let hole = Int(mc_seek_hole(file.fd, Int64(end)))
            guard hole > end, hole <= model.count else { throw failed("SEEK_HOLE \(end): \(hole)") }
            position = hole
        }
    }

    private func withMapping<T>(
        of file: TestFile, _ size: Int, writable: Bool,
        _ body: (UnsafeMutableRawPointer) throws -> T
    ) throws -> T {
        let protection = PROT_READ | (writable ? PROT_WRITE : 0)
        guard let map = mmap(nil, size, protection, MAP_SHARED, file.fd, 0), map != MAP_FAILED
        else { throw failed("mmap: errno \(errno)") }
        defer { munmap(map, size) }
        return try body(map)
    }
}
