// The key of this host, and the certificate that TLS wants around it.
//
// The key alone is the identity: peers pin its hash and look at nothing else of the certificate, which
// is therefore made from the key whenever it is needed, and never kept.

import Crypto

package struct HostIdentity: Sendable {
    /// PKCS #8.
    package let privateKeyPEM: [UInt8]
    package let certificatePEM: [UInt8]
    package let fingerprint: PeerFingerprint

    /// A new key. P-256, which every TLS 1.3 library takes without being told to.
    package static func make() throws(IdentityError) -> HostIdentity {
        try HostIdentity(key: P256.Signing.PrivateKey())
    }

    package init(privateKeyPEM: [UInt8]) throws(IdentityError) {
        let key: P256.Signing.PrivateKey
        do {
            key = try P256.Signing.PrivateKey(
                pemRepresentation: String(decoding: privateKeyPEM, as: UTF8.self))
        } catch {
            throw IdentityError(.damaged, "is no private key for P-256 (\(error))")
        }
        try self.init(key: key)
    }

    private init(key: P256.Signing.PrivateKey) throws(IdentityError) {
        let publicKey = Array(key.publicKey.derRepresentation)
        fingerprint = PeerFingerprint(subjectPublicKeyInfo: publicKey)
        let certificate: [UInt8]
        do {
            certificate = try SelfSignedCertificate.make(
                publicKey: publicKey, serial: Array(fingerprint.bytes.prefix(8))
            ) { Array(try key.signature(for: $0).derRepresentation) }
        } catch {
            throw IdentityError(.damaged, "cannot sign (\(error))")
        }
        certificatePEM = PEM.encode("CERTIFICATE", certificate)
        privateKeyPEM = Array((key.pemRepresentation + "\n").utf8)
    }
}
