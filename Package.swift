// swift-tools-version: 6.1
import PackageDescription

/// Strict by default: a warning is a bug that has not been read yet.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("ExistentialAny"),
]

let package = Package(
    name: "doppel",
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.5.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.0"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
    ],
    targets: [
        // C: the system libraries Swift cannot import as they are.
        .target(
            name: "CFuse", path: "CFuse",
            cSettings: [.define("_GNU_SOURCE"), .define("FUSE_USE_VERSION", to: "314")],
            linkerSettings: [.linkedLibrary("fuse3")]),
        .target(name: "CLinux", cSettings: [.define("_GNU_SOURCE")]),
        .target(name: "CXXHash", linkerSettings: [.linkedLibrary("xxhash")]),
        .target(name: "CZstd", linkerSettings: [.linkedLibrary("zstd")]),

        // Doppel, from the bottom up; arrows point down only.
        .target(
            name: "BlockCore", dependencies: ["CXXHash", "CZstd"], swiftSettings: strict),
        .target(name: "SystemIO", dependencies: ["BlockCore", "CLinux"], swiftSettings: strict),
        .target(
            name: "Pool",
            dependencies: [
                "BlockCore", "SystemIO",
                .product(name: "GRDB", package: "GRDB.swift"),
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .target(
            name: "Replication", dependencies: ["BlockCore", "SystemIO"], swiftSettings: strict),
        .target(
            name: "Identity",
            dependencies: [
                "BlockCore", "SystemIO",
                .product(name: "Crypto", package: "swift-crypto"),
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .target(
            name: "Transport",
            dependencies: [
                "BlockCore", "SystemIO", "Identity", "Replication",
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "NIOTLS", package: "swift-nio"),
            ], swiftSettings: strict),
        .target(
            name: "Settings",
            dependencies: [
                "BlockCore", "SystemIO", "Identity",
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .target(
            name: "Volume",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "Replication",
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .target(
            name: "Targets",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "Replication", "Volume",
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .target(
            name: "VirtualFS", dependencies: ["BlockCore", "SystemIO", "Pool", "Volume"],
            swiftSettings: strict),
        .target(
            name: "FuseFrontend",
            dependencies: [
                "CFuse", "SystemIO", "Volume", "VirtualFS",
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .target(
            name: "Daemon",
            dependencies: [
                "BlockCore", "SystemIO", "Identity", "Settings", "Pool", "Replication", "Transport",
                "Volume", "Targets", "VirtualFS", "FuseFrontend",
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),

        // What the tests of the mount need: the calls Glibc's module lacks, and a server in a
        // process of its own.
        .target(
            name: "MountCalls", path: "Tests/MountCalls", cSettings: [.define("_GNU_SOURCE")]),
        .executableTarget(
            name: "MountFixture",
            dependencies: ["FuseFrontend", "SystemIO", "Pool", "Volume", "VirtualFS"],
            path: "Tests/MountFixture", swiftSettings: strict),
        // Hands a pool over and dies on the way, for the tests of that.
        .executableTarget(
            name: "HandoverFixture", dependencies: ["Daemon"], path: "Tests/HandoverFixture",
            swiftSettings: strict),
        // Forgets on command what was not synced; lies under a pool in the tests.
        .executableTarget(
            name: "LossyFS", dependencies: ["CFuse", "SystemIO"], path: "Tests/LossyFS",
            swiftSettings: strict),
        .testTarget(
            name: "FuseFrontendTests",
            dependencies: [
                "FuseFrontend", "MountFixture", "LossyFS", "MountCalls", "SystemIO", "TestSupport",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "SystemIOTests", dependencies: ["SystemIO", "TestSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "PoolTests",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "TestSupport",
                .product(name: "GRDB", package: "GRDB.swift"),
            ], swiftSettings: strict),
        .testTarget(
            name: "CommandLineTests",
            dependencies: [
                "doppel", "HandoverFixture", "SystemIO", "TestSupport",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], swiftSettings: strict),
        .testTarget(
            name: "DaemonTests",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "Replication", "Targets", "Volume", "VirtualFS",
                "Daemon", "TestSupport",
            ], swiftSettings: strict),
        .testTarget(
            name: "VirtualFSTests",
            dependencies: ["BlockCore", "SystemIO", "Pool", "Volume", "VirtualFS", "TestSupport"],
            swiftSettings: strict),
        .executableTarget(
            name: "doppel",
            dependencies: [
                "BlockCore", "SystemIO", "Identity", "Settings", "Pool", "Volume", "VirtualFS",
                "FuseFrontend", "Daemon",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ], swiftSettings: strict),
        .testTarget(
            name: "VolumeTests",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "Replication", "Volume", "TestSupport",
                .product(name: "GRDB", package: "GRDB.swift"),
            ], swiftSettings: strict),
        // What tests of several modules share: seeded random numbers, a disk that forgets.
        .target(
            name: "TestSupport",
            dependencies: ["BlockCore", "SystemIO", "Replication", "MountCalls"],
            path: "Tests/TestSupport", swiftSettings: strict),
        // Other people's programs on the mount of the built program, and the machine under it failing.
        .testTarget(
            name: "RealProgramTests",
            dependencies: [
                "doppel", "LossyFS", "MountCalls", "Pool", "TestSupport", "WireHarness",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "BlockCoreTests", dependencies: ["BlockCore", "TestSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "ReplicationTests",
            dependencies: ["BlockCore", "SystemIO", "Replication", "TestSupport", "WireHarness"],
            exclude: ["Wire/Corpus"], swiftSettings: strict),
        .testTarget(
            name: "IdentityTests", dependencies: ["SystemIO", "Identity", "TestSupport"],
            swiftSettings: strict),
        .testTarget(
            name: "TransportTests",
            dependencies: [
                "BlockCore", "SystemIO", "Identity", "Replication", "Transport", "TestSupport",
            ], swiftSettings: strict),
        .testTarget(
            name: "SettingsTests", dependencies: ["BlockCore", "Settings"], swiftSettings: strict),
        // Bytes from anywhere for either side of a connection; `docs/testing.md` has the fuzzer's command.
        .target(
            name: "WireHarness", dependencies: ["BlockCore", "Replication"],
            path: "Tests/WireHarness", swiftSettings: strict),
        .testTarget(
            name: "TargetsTests",
            dependencies: [
                "BlockCore", "SystemIO", "Identity", "Pool", "Replication", "Transport", "Volume",
                "Targets", "TestSupport",
                .product(name: "GRDB", package: "GRDB.swift"),
            ], swiftSettings: strict),
        // A primary and its mirror in one thread, from one seed; `swift run simulator`.
        .target(
            name: "Simulation",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "Replication", "Volume", "Targets", "TestSupport",
                .product(name: "GRDB", package: "GRDB.swift"),
            ], path: "Tests/Simulation", swiftSettings: strict),
        .executableTarget(
            name: "simulator",
            dependencies: [
                "Simulation", "SystemIO",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Logging", package: "swift-log"),
            ], path: "Tests/Simulator", swiftSettings: strict),
        .testTarget(
            name: "SimulationTests", dependencies: ["Simulation", "TestSupport"],
            swiftSettings: strict),
        // What cannot be seen from outside a mount; `Benchmarks/bench.py` measures the rest.
        .executableTarget(
            name: "volume-bench",
            dependencies: [
                "BlockCore", "SystemIO", "Pool", "Replication", "Volume",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ], path: "Benchmarks/VolumeBench", swiftSettings: strict),
        .testTarget(name: "ArchitectureTests", swiftSettings: strict),
    ]
)

// Links a library that has a `main` of its own: built only for who asks for it.
if Context.environment["DOPPEL_FUZZ"] != nil {
    package.targets.append(
        .executableTarget(
            name: "wire-fuzzer", dependencies: ["WireHarness"], path: "Tests/WireFuzzer",
            swiftSettings: strict))
}
