// The least X.509 certificate that TLS 1.3 takes (RFC 5280): version 3, one name, no end, a key for signing.
// Its signature proves nothing to anybody: that the peer has the key is proved by the handshake.

import Foundation

enum SelfSignedCertificate {
    /// - Parameters:
    ///   - publicKey: DER SubjectPublicKeyInfo of a P-256 key.
    ///   - serial: bytes of a number, of which the highest bit is not used.
    ///   - sign: ECDSA with SHA-256 over what it is given, in DER.
    static func make(
        publicKey: [UInt8], serial: [UInt8], sign: ([UInt8]) throws -> [UInt8]
    ) throws -> [UInt8] {
        let name = DER.sequence(
            DER.set(DER.sequence(OID.commonName, DER.node(0x0c, Array("doppel".utf8)))))
        let content = DER.sequence(
            DER.node(0xa0, DER.node(0x02, [2])),  // version 3
            DER.node(0x02, positive(serial)),
            DER.sequence(OID.ecdsaWithSHA256),
            name,
            DER.sequence(
                DER.node(0x17, Array("200101000000Z".utf8)),
                // RFC 5280, 4.1.2.5: has no well-defined end.
                DER.node(0x18, Array("99991231235959Z".utf8))),
            name,
            publicKey,
            DER.node(
                0xa3,
                DER.sequence(
                    critical(OID.basicConstraints, DER.sequence()),  // of no authority
                    critical(OID.keyUsage, DER.node(0x03, [7, 0x80])))))  // digitalSignature
        let signature = try sign(content)
        return DER.sequence(
            content, DER.sequence(OID.ecdsaWithSHA256), DER.node(0x03, [0] + signature))
    }

    private static func critical(_ identifier: [UInt8], _ value: [UInt8]) -> [UInt8] {
        DER.sequence(identifier, DER.node(0x01, [0xff]), DER.node(0x04, value))
    }

    /// The shortest form of a positive number: its first byte is neither 0 nor negative.
    private static func positive(_ bytes: [UInt8]) -> [UInt8] {
        var bytes = bytes
        bytes[0] = bytes[0] & 0x7f | 0x40
        return bytes
    }
}

private enum OID {
    static let commonName: [UInt8] = [0x06, 3, 0x55, 0x04, 0x03]
    static let keyUsage: [UInt8] = [0x06, 3, 0x55, 0x1d, 0x0f]
    static let basicConstraints: [UInt8] = [0x06, 3, 0x55, 0x1d, 0x13]
    static let ecdsaWithSHA256: [UInt8] = [0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]
}

/// Distinguished encoding of tag, length and content.
private enum DER {
    static func node(_ tag: UInt8, _ parts: [UInt8]...) -> [UInt8] { encode(tag, parts) }
    static func sequence(_ parts: [UInt8]...) -> [UInt8] { encode(0x30, parts) }
    static func set(_ parts: [UInt8]...) -> [UInt8] { encode(0x31, parts) }

    private static func encode(_ tag: UInt8, _ parts: [[UInt8]]) -> [UInt8] {
        let content = parts.flatMap { $0 }
        var length: [UInt8] = []
        if content.count < 0x80 {
            length = [UInt8(content.count)]
        } else {
            var rest = content.count
            while rest > 0 {
                length.insert(UInt8(rest & 0xff), at: 0)
                rest >>= 8
            }
            length.insert(0x80 | UInt8(length.count), at: 0)
        }
        return [tag] + length + content
    }
}

enum PEM {
    static func encode(_ label: String, _ bytes: [UInt8]) -> [UInt8] {
        let text = Data(bytes).base64EncodedString(
            options: [.lineLength64Characters, .endLineWithLineFeed])
        return Array("-----BEGIN \(label)-----\n\(text)\n-----END \(label)-----\n".utf8)
    }
}
