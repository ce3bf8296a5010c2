import TestSupport

/// One seed, so many steps; and what of it a violation needs.
package struct SimulationRun: Sendable {
    package var seed: UInt64
    package var steps: Int
    package var kind: SimulatedWorld.Kind
    package var bug: SimulatedBug?

    package init(
        seed: UInt64, steps: Int, kind: SimulatedWorld.Kind = .mirrors, bug: SimulatedBug? = nil
    ) {
        self.seed = seed
        self.steps = steps
        self.kind = bug?.world ?? kind
        self.bug = bug
    }

    package struct Failure: Sendable {
        package var violation: String
        /// Steps that lead to it, told one by one.
        package var trace: [String]
        package var steps: [Int]
    }

    /// - Returns: nil where nothing is wrong, and what was covered.
    package func run() -> (failure: Failure?, coverage: [String: Int]) {
        let (violation, world, last) = attempt(Array(0..<steps), isTracing: false)
        guard let violation else { return (nil, world?.coverage ?? [:]) }
        return (minimal(violation, upTo: last), world?.coverage ?? [:])
    }

    /// What is wrong, without the search for what it needs.
    package func violation() -> String? {
        attempt(Array(0..<steps), isTracing: false).violation
    }

    /// The same, with all that is done printed as it comes.
    package func print() -> String? {
        attempt(Array(0..<steps), isTracing: true, isPrinting: true).violation
    }

    private func attempt(
        _ numbers: [Int], isTracing: Bool, isPrinting: Bool = false
    ) -> (violation: String?, world: SimulatedWorld?, last: Int) {
        var options = SimulatedWorld.Options()
        options.kind = kind
        options.bug = bug
        (options.isTracing, options.isPrinting) = (isTracing, isPrinting)
        var last = 0
        var world: SimulatedWorld?
        defer { world?.end() }
        do {
            let made = try SimulatedWorld(seed: seed, options: options)
            world = made
            for number in numbers {
                last = number
                try made.step(number)
            }
            try made.settleDown()
            return (nil, world, last)
        } catch { return ("\(error)", world, last) }
    }

    /// Leaves out what can be left out: halves, quarters and so on, as long as there is a violation.
    private func minimal(_ violation: String, upTo last: Int) -> Failure {
        var numbers = Array(0...last)
        var violation = violation
        var size = max(numbers.count / 2, 1)
        var attempts = 0
        while attempts < 300 {
            var start = 0
            var didShrink = false
            while start < numbers.count, attempts < 300 {
                var fewer = numbers
                fewer.removeSubrange(start..<min(start + size, fewer.count))
                attempts += 1
                let (found, _, end) = attempt(fewer, isTracing: false)
                if let found {
                    numbers = fewer.filter { $0 <= end }
                    violation = found
                    didShrink = true
                } else {
                    start += size
                }
            }
            if size == 1, !didShrink { break }
            size = max(size / 2, 1)
        }
        let (_, world, _) = attempt(numbers, isTracing: true)
        return Failure(violation: violation, trace: world?.traceLines ?? [], steps: numbers)
    }
}
