/// A snapshot that a crash kept its pool from completing, although targets may have its cut: its place is in here,
/// and that of no snapshot that ever was complete.
package struct DroppedCut: Hashable, Sendable {
    package var after: SequenceNumber
    package var through: SequenceNumber

    package init(after: SequenceNumber, through: SequenceNumber) {
        self.after = after
        self.through = through
    }

    package func contains(_ cut: SequenceNumber) -> Bool { cut > after && cut <= through }
}
