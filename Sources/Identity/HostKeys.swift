// The keys of this host on disk, and how they change:
//
//             current()            rotate()              retire(old)
//   none ───────────────► key ───────────────► key, next ────────────► key (was next)
//                          ▲                       │
//                          └────── retire(next) ───┘
//
// `key` is the one that the host shows until it is retired. A rename makes `next` the key, so that at no
// moment there is none, and what was retired is nowhere any more.

import SystemIO

package struct HostKeys: Sendable {
    private let state: StateDirectory
    private var keyPath: String { state.file("host.key") }
    private var nextPath: String { state.file("host.next.key") }

    package init(_ state: StateDirectory) { self.state = state }

    /// The key that this host shows, made if there is none.
    package func current() throws(IdentityError) -> HostIdentity {
        if let key = try load(keyPath) { return key }
        return try state.withLock { () throws(IdentityError) in
            // Somebody else may have been first.
            if let key = try load(keyPath) { return key }
            return try make(keyPath)
        }
    }

    /// The same, where it was made already.
    package func existing() throws(IdentityError) -> HostIdentity? { try load(keyPath) }

    /// The key that is to follow, while one is there.
    package func next() throws(IdentityError) -> HostIdentity? { try load(nextPath) }

    /// Makes the key that is to follow.
    package func rotate() throws(IdentityError) -> HostIdentity {
        _ = try current()
        return try state.withLock { () throws(IdentityError) in
            if let next = try load(nextPath) {
                throw IdentityError(
                    .refused,
                    "a second key is there already, \(next.fingerprint): retire one of the two first"
                )
            }
            return try make(nextPath)
        }
    }

    /// Destroys one of two keys; the other is the host's from then on.
    /// - Returns: the one that is left.
    package func retire(_ fingerprint: PeerFingerprint) throws(IdentityError) -> HostIdentity {
        let key = try current()
        return try state.withLock { () throws(IdentityError) in
            guard let next = try load(nextPath) else {
                throw IdentityError(
                    .refused,
                    "there is one key alone: make a second one first (doppel pair --rotate)")
            }
            switch fingerprint {
            case key.fingerprint:
                try system { () throws(SystemError) in
                    try state.disk.rename(nextPath, to: keyPath)
                    try state.disk.syncDirectory(state.path)
                }
                return next
            case next.fingerprint:
                try system { () throws(SystemError) in
                    try state.disk.removeFile(nextPath)
                    try state.disk.syncDirectory(state.path)
                }
                return key
            default:
                throw IdentityError(
                    .refused,
                    "this host's keys are \(key.fingerprint) and \(next.fingerprint): "
                        + "\(fingerprint) is neither")
            }
        }
    }

    private func load(_ path: String) throws(IdentityError) -> HostIdentity? {
        guard let bytes = try state.read(path, isSecret: true) else { return nil }
        do throws(IdentityError) { return try HostIdentity(privateKeyPEM: bytes) } catch {
            throw IdentityError(
                error.kind,
                "\(path) \(error.message): put it back from a backup, or move it away for a new one"
            )
        }
    }

    private func make(_ path: String) throws(IdentityError) -> HostIdentity {
        let identity = try HostIdentity.make()
        try state.write(path, identity.privateKeyPEM)
        return identity
    }
}
