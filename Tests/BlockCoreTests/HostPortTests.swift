import BlockCore
import Testing

@Suite struct HostPortTests {
    @Test func addressesAreRead() {
        #expect(HostPort("backup.example:7000") == HostPort(host: "backup.example", port: 7000))
        #expect(HostPort("192.0.2.1") == HostPort(host: "192.0.2.1", port: 7420))
        #expect(HostPort("[2001:db8::1]:80") == HostPort(host: "2001:db8::1", port: 80))
        #expect(HostPort("[::1]")?.description == "[::1]:7420")
        for text in [
            "", ":80", "host:", "host:70000", "host:-1", "host:8a", "::1", "[::1", "[]:1",
            "[host]:1",
            "a b:1", "host:1:2", "host/x:1", "[::1]x",
        ] { #expect(HostPort(text) == nil, "\(text)") }
    }

    @Test func theLoopbackIsAnAddressAndNoName() {
        #expect(HostPort(host: "127.0.0.1", port: 1).isLoopback)
        #expect(HostPort(host: "127.9.8.7", port: 1).isLoopback)
        for host in [
            "localhost", "128.0.0.1", "127.0.0", "127.0.0.1.example.org", "::1", "127.0.0.x",
        ] { #expect(!HostPort(host: host, port: 1).isLoopback, "\(host)") }
    }
}
