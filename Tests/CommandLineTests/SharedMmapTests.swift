import Testing

@testable import doppel

/// What a mount says on a kernel that cannot map uncached images shared.
@Suite struct SharedMmapTests {
    @Test(arguments: [
        ("6.1.0-18-amd64", SharedMmap.missing), ("5.15.0", .missing), ("6.5.13", .missing),
        ("6.6.0", .slow), ("6.8.12-generic", .slow), ("6.9", .full), ("6.18.44-fc", .full),
        ("7.0.1", .full), ("unknown", .missing),
    ])
    func kernelsAreToldApart(release: String, expected: SharedMmap) {
        #expect(SharedMmap(release: release) == expected)
    }

    @Test func itIsSaidWhereAProgramWouldMeetIt() {
        let notice = SharedMmap.notice(release: "6.1.0", cache: .none)
        #expect(notice?.contains("--cache read") == true && notice?.contains("6.6") == true)
        #expect(SharedMmap.notice(release: "6.1.0", cache: .read) == nil)
        #expect(SharedMmap.notice(release: "6.12.1", cache: .none) == nil)
    }
}
