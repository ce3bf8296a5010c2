import Foundation
import SystemIO
import TestSupport
import Testing

@testable import Identity

/// The host's key: made once, kept from others, changed without a moment in which there is none.
@Suite struct HostKeysTests {
    private func withFolder(_ body: (String) throws -> Void) throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        try body(folder)
    }

    private func mode(_ path: String) throws -> UInt32 {
        try #require(try LinuxDisk().status(path)).mode
    }

    @Test func itIsMadeOnceAndForTheOwnerAlone() throws {
        try withFolder { folder in
            let keys = HostKeys(StateDirectory(path: folder + "/a/state"))
            let threads = (0..<4).map { _ in TestThread { try keys.current().fingerprint } }
            let all = Set(try threads.map { try $0.join() })
            #expect(all.count == 1)
            #expect(try keys.current().fingerprint == all.first)
            #expect(try mode(folder + "/a/state") == 0o700)
            #expect(try mode(folder + "/a/state/host.key") == 0o600)
            #expect(try keys.next() == nil)
        }
    }

    @Test func whatOthersCanReadIsNotTrusted() throws {
        try withFolder { folder in
            let keys = HostKeys(StateDirectory(path: folder + "/state"))
            _ = try keys.current()
            for bits: mode_t in [0o640, 0o604, 0o660] {
                chmod(folder + "/state/host.key", bits)
                let error = #expect(throws: IdentityError.self) { _ = try keys.current() }
                #expect(error?.kind == .untrusted)
                #expect(
                    error?.message.contains("chmod 600") == true, "\(String(describing: error))")
            }
            chmod(folder + "/state/host.key", 0o600)
            _ = try keys.current()
            // Whoever can write here can put another key in its place.
            chmod(folder + "/state", 0o770)
            #expect(throws: IdentityError.self) { _ = try keys.rotate() }
        }
    }

    @Test func aFileThatIsNoKeyIsSaidAndKept() throws {
        try withFolder { folder in
            let keys = HostKeys(StateDirectory(path: folder + "/state"))
            _ = try keys.current()
            try Data("rubbish\n".utf8).write(to: URL(fileURLWithPath: folder + "/state/host.key"))
            let error = #expect(throws: IdentityError.self) { _ = try keys.current() }
            #expect(error?.kind == .damaged)
            #expect(error?.message.contains("host.key") == true)
            #expect(FileManager.default.contents(atPath: folder + "/state/host.key")?.count == 8)
        }
    }

    @Test func aKeyIsChangedByASecondOne() throws {
        try withFolder { folder in
            let keys = HostKeys(StateDirectory(path: folder))
            let old = try keys.current().fingerprint
            #expect(throws: IdentityError.self, "there is one alone") { _ = try keys.retire(old) }
            let new = try keys.rotate().fingerprint
            #expect(new != old)
            #expect(
                try keys.current().fingerprint == old, "it is not shown before the other is gone")
            #expect(try keys.next()?.fingerprint == new)
            #expect(throws: IdentityError.self, "two are enough") { _ = try keys.rotate() }
            let other = try HostIdentity.make().fingerprint
            #expect(throws: IdentityError.self) { _ = try keys.retire(other) }
            #expect(try keys.retire(old).fingerprint == new)
            #expect(try keys.current().fingerprint == new)
            #expect(try keys.next() == nil)
            // Called off: what was there stays.
            let third = try keys.rotate().fingerprint
            #expect(try keys.retire(third).fingerprint == new)
            #expect(try keys.current().fingerprint == new)
        }
    }

    /// Whatever was told to anybody is there after a loss of power, and there is never none.
    @Test(arguments: Seeds.run(4)) func powerGoesAtAnySync(seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        for sync in 1..<20 {
            let disk = SimulatedDisk()
            try disk.createDirectory("/var", mode: 0o755)
            try disk.syncDirectory("/")
            disk.powerOff(atSync: sync)
            var told: [PeerFingerprint] = []
            var retired: PeerFingerprint?
            let keys = HostKeys(StateDirectory(path: "/var/doppel", disk: disk))
            do {
                told = [try keys.current().fingerprint]
                told.append(try keys.rotate().fingerprint)
                retired = told[0]
                _ = try keys.retire(told[0])
                told.removeFirst()
                retired = nil
            } catch {}
            let after = disk.crash(&random)
            let left = HostKeys(StateDirectory(path: "/var/doppel", disk: after))
            let found = Set([try left.current(), try left.next()].compactMap { $0?.fingerprint })
            for key in told where key != retired {
                #expect(found.contains(key), "sync \(sync)")
            }
        }
    }
}

/// What other programs make of key and certificate.
@Suite struct HostIdentityTests {
    @Test func aFingerprintIsOneText() throws {
        let identity = try HostIdentity.make()
        let text = identity.fingerprint.description
        #expect(text.wholeMatch(of: /SHA256:[A-Za-z0-9+\/]{43}/) != nil)
        #expect(PeerFingerprint(text) == identity.fingerprint)
        #expect(PeerFingerprint(bytes: identity.fingerprint.bytes) == identity.fingerprint)
        let zero = "SHA256:" + String(repeating: "A", count: 43)
        #expect(PeerFingerprint(zero)?.bytes == [UInt8](repeating: 0, count: 32))
        for wrong in [
            "", "SHA256:", text + "=", text + "A", String(text.dropLast()),
            "sha256" + text.dropFirst(6),
            // The two bits that 43 letters have beyond 32 bytes.
            String(zero.dropLast()) + "B", "MD5:" + text.dropFirst(7), " " + text,
        ] { #expect(PeerFingerprint(wrong) == nil, "\(wrong)") }
    }

    @Test func theSameKeyHasTheSameFingerprint() throws {
        let one = try HostIdentity.make()
        let again = try HostIdentity(privateKeyPEM: one.privateKeyPEM)
        #expect(again.fingerprint == one.fingerprint)
        #expect(try HostIdentity.make().fingerprint != one.fingerprint)
    }

    @Test func opensslReadsTheSame() throws {
        let folder = try makeTemporaryFolder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        // Serials and signatures of many forms.
        for _ in 0..<8 {
            let identity = try HostIdentity.make()
            try Data(identity.privateKeyPEM).write(to: URL(fileURLWithPath: folder + "/key"))
            try Data(identity.certificatePEM).write(to: URL(fileURLWithPath: folder + "/cert"))
            let script = """
                set -e; cd '\(folder)'
                openssl x509 -in cert -noout -pubkey | openssl pkey -pubin -outform DER \
                    | openssl dgst -sha256 -binary | openssl base64 > pinned
                openssl pkey -in key -pubout -outform DER | openssl dgst -sha256 -binary \
                    | openssl base64 > own
                openssl verify -partial_chain -check_ss_sig -CAfile cert cert
                openssl x509 -in cert -noout -text -nameopt RFC2253
                """
            try Data(script.utf8).write(to: URL(fileURLWithPath: folder + "/script"))
            let (code, text) = try run(["sh", folder + "/script"])
            #expect(code == 0, "\(text)")
            for words in [
                "cert: OK", "Version: 3", "CN=doppel", "Not After : Dec 31 23:59:59 9999",
                "Digital Signature",
                "ecdsa-with-SHA256", "CA:FALSE", "NIST CURVE: P-256",
            ] { #expect(text.contains(words), "\(words): \(text)") }
            for name in ["pinned", "own"] {
                let found = try String(contentsOfFile: folder + "/" + name, encoding: .utf8)
                #expect("SHA256:\(found.dropLast(2))" == identity.fingerprint.description)
            }
        }
    }
}
