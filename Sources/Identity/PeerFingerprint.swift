import Crypto
import Foundation

/// Who a host is: the SHA-256 of its public key, as DER SubjectPublicKeyInfo. A certificate that is made
/// anew from the same key has the same one.
package struct PeerFingerprint: Hashable, Sendable, CustomStringConvertible {
    package static let byteCount = 32
    private static let prefix = "SHA256:"

    package let bytes: [UInt8]

    /// - Returns: nil unless there are 32 bytes.
    package init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        self.bytes = bytes
    }

    /// - Parameter subjectPublicKeyInfo: DER, as a certificate has it.
    package init(subjectPublicKeyInfo: some Sequence<UInt8>) {
        bytes = Array(SHA256.hash(data: Array(subjectPublicKeyInfo)))
    }

    /// - Returns: nil unless the text is exactly as ``description`` would have it.
    package init?(_ text: some StringProtocol) {
        guard text.hasPrefix(Self.prefix),
            let data = Data(base64Encoded: text.dropFirst(Self.prefix.count) + "="),
            data.count == Self.byteCount
        else { return nil }
        bytes = Array(data)
        // Two texts for one key would be two lines for it.
        guard description == text else { return nil }
    }

    /// `SHA256:` and base64 without padding, as OpenSSH writes them. 32 bytes have one sign of padding.
    package var description: String {
        Self.prefix + Data(bytes).base64EncodedString().dropLast()
    }
}
