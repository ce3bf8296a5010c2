import Foundation
import TestSupport
import Testing

/// What makes targets and disks fail is linked into tests alone.
@Suite struct FaultInjectionTests {
    @Test func theProgramHasNothingThatFailsOnPurpose() throws {
        let program = try Data(contentsOf: URL(filePath: Sandbox.binary), options: .alwaysMapped)
        func has(_ name: String) -> Bool { program.range(of: Data(name.utf8)) != nil }
        // The names of types are in it.
        #expect(has("SessionDriver") && has("LinuxDisk"))
        for name in ["FaultyTarget", "TargetFault", "SimulatedDisk", "LossyStore", "MemoryTarget"] {
            #expect(!has(name), "\(name) is linked into the program")
        }
    }

    /// No target below Sources depends on one below Tests.
    @Test func noModuleOfTheProgramStandsOnOneOfTheTests() throws {
        let root = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
        let package = try String(contentsOfFile: "/\(root)/Package.swift", encoding: .utf8)
        let tests = ["TestSupport", "Simulation", "LossyFS", "MountCalls", "MountFixture"]
        let blocks = package.components(separatedBy: "\n        .").filter {
            ($0.hasPrefix("target(") || $0.hasPrefix("executableTarget("))
                && !$0.contains("path: \"Tests/") && !$0.contains("path: \"Benchmarks/")
        }
        #expect(blocks.count >= 10)
        for block in blocks {
            for name in tests where block.contains("\"\(name)\"") {
                Issue.record("a module of the program stands on \(name): \(block.prefix(60))")
            }
        }
    }
}
