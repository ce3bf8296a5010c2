// What both machines do alike with what comes, and with time.

package protocol LinkEvent {
    static var suspected: Self { get }
    static var recovered: Self { get }
    static func ended(_ end: WireEnd) -> Self
}

protocol LinkMachine {
    associatedtype Event: LinkEvent
    var link: LinkCore { get set }
    var hasEnded: Bool { get }
    /// One whole message.
    mutating func take(_ frame: WireFrame, _ now: Int64) throws(WireError) -> Event?
    mutating func end(_ end: WireEnd) -> Event
}

extension LinkMachine {
    mutating func takeFrames(_ bytes: UnsafeRawBufferPointer, now: Int64) -> [Event] {
        var events: [Event] = []
        var (rest, frames, isOther) = (bytes, 0, false)
        do throws(WireError) {
            while !hasEnded, let frame = try link.decoder.next(&rest) {
                frames += 1
                if !frame.head.kind.isBeat { isOther = true }
                guard let message = try link.assembler.add(frame) else { continue }
                if let event = try take(message, now) { events.append(event) }
            }
        } catch {
            link.refuse(error, now: now)
            events.append(end(.broken(error)))
        }
        isOther = isOther || link.decoder.bodyBytesTaken > LinkClock.livelyBytes
        if !hasEnded,
            link.clock.heard(bytes.count, frames: frames, isOther: isOther, now: now)
        {
            events.append(.recovered)
        }
        return events
    }

    mutating func watchClock(now: Int64) -> [Event] {
        var events: [Event] = []
        for finding in link.clock.tick(now: now) {
            switch finding {
            case .pingIsDue: link.ping(now: now)
            case .suspected: events.append(.suspected)
            case .failed(let why): events.append(end(.silent(why)))
            }
        }
        return events
    }
}
