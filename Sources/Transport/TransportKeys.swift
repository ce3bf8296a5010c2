// TLS 1.3 between two hosts that know each other's key. A certificate is there to carry its key: what it says of
// names, times and issuers is not looked at.
//
// - K1  A peer is the SHA-256 of its key (SubjectPublicKeyInfo) and nothing else. That it has the key itself is
//       shown in the handshake (CertificateVerify), with the first certificate it sends; others are ignored.
// - K2  The key is looked at in the handshake, and once more when that is done: a session that goes on from an
//       earlier one (a ticket) has no certificate in its handshake.
// - K3  Nothing a peer sends is read as the protocol before K2.

import Identity
import NIOCore
import NIOSSL

package struct TransportKeys: Sendable {
    package let fingerprint: PeerFingerprint
    private let client: NIOSSLContext
    private let server: NIOSSLContext

    /// - Throws: `.keys`.
    package init(_ identity: HostIdentity) throws(TransportError) {
        fingerprint = identity.fingerprint
        do {
            let certificates = try NIOSSLCertificate.fromPEMBytes(identity.certificatePEM)
            guard let own = certificates.first, Self.fingerprint(of: own) == identity.fingerprint
            else { throw TransportError(.keys, "its certificate is of another key") }
            let chain = [NIOSSLCertificateSource.certificate(own)]
            let key = NIOSSLPrivateKeySource.privateKey(
                try NIOSSLPrivateKey(bytes: identity.privateKeyPEM, format: .pem))
            var toServers = TLSConfiguration.makeClientConfiguration()
            toServers.certificateChain = chain
            toServers.privateKey = key
            var toClients = TLSConfiguration.makeServerConfiguration(
                certificateChain: chain, privateKey: key)
            Self.tighten(&toServers)
            Self.tighten(&toClients)
            client = try NIOSSLContext(configuration: toServers)
            server = try NIOSSLContext(configuration: toClients)
        } catch let error as TransportError {
            throw error
        } catch {
            throw TransportError(.keys, "this host's key cannot be used: \(error)")
        }
    }

    private static func tighten(_ configuration: inout TLSConfiguration) {
        configuration.minimumTLSVersion = .tlsv13
        configuration.maximumTLSVersion = .tlsv13
        // A peer without a certificate is refused; the callbacks look at the one it has.
        configuration.certificateVerification = .noHostnameVerification
        configuration.trustRoots = .certificates([])
        configuration.verifySignatureAlgorithms = [.ecdsaSecp256R1Sha256]
        configuration.shutdownTimeout = .seconds(1)
    }

    /// nil for one without a key that can be read.
    static func fingerprint(of certificate: NIOSSLCertificate) -> PeerFingerprint? {
        guard let key = try? certificate.extractPublicKey().toSPKIBytes() else { return nil }
        return PeerFingerprint(subjectPublicKeyInfo: key)
    }

    private static func callback(
        _ isKnown: @escaping @Sendable (PeerFingerprint?) -> Bool
    ) -> NIOSSLCustomVerificationCallback {
        { certificates, promise in
            let found = certificates.first.flatMap(fingerprint(of:))
            promise.succeed(isKnown(found) ? .certificateVerified : .failed)
        }
    }

    /// - Parameter isKnown: asked for the server's key; on the channel's event loop.
    func clientHandler(
        _ isKnown: @escaping @Sendable (PeerFingerprint?) -> Bool
    ) throws -> NIOSSLClientHandler {
        try NIOSSLClientHandler(
            context: client, serverHostname: nil, customVerificationCallback: Self.callback(isKnown)
        )
    }

    /// - Parameter isKnown: as for ``clientHandler(_:)``, for the client's key.
    func serverHandler(
        _ isKnown: @escaping @Sendable (PeerFingerprint?) -> Bool
    ) -> NIOSSLServerHandler {
        NIOSSLServerHandler(context: server, customVerificationCallback: Self.callback(isKnown))
    }
}

extension ChannelHandlerContext {
    /// Whose key the other side has shown, once the handshake is done (K2).
    var peer: PeerFingerprint? {
        let certificate = try? pipeline.syncOperations.nioSSL_peerCertificate()
        return certificate.flatMap(TransportKeys.fingerprint(of:))
    }
}
