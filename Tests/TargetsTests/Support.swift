import BlockCore
import Foundation
import Pool
import TestSupport

enum Environment {
    /// DOPPEL_TRACE tells every step, for the replay of one seed.
    static let isTracing = ProcessInfo.processInfo.environment["DOPPEL_TRACE"] != nil
}

func hashOf(_ bytes: [UInt8]) -> UInt64 { bytes.withUnsafeBytes { blockHash($0) } }
