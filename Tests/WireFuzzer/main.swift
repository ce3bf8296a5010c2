// libFuzzer over `WireHarness`: the command is in docs/testing.md.

import WireHarness

typealias FuzzedFunction = @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32

@_silgen_name("LLVMFuzzerRunDriver")
func runFuzzer(
    _ count: UnsafeMutablePointer<Int32>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ function: FuzzedFunction
) -> Int32

var count = CommandLine.argc
var arguments = CommandLine.unsafeArgv
_ = runFuzzer(&count, &arguments) { bytes, length in
    WireHarness.run(UnsafeBufferPointer(start: bytes, count: length))
    return 0
}
