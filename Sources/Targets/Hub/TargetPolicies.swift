import Pool
import Replication

extension TargetRecord {
    /// How it is waited for.
    package var policy: TargetPolicy { TargetPolicy(AckPolicy(replicationMode)) }

    private var replicationMode: ReplicationMode {
        switch mode {
        case .async: .async
        case .flush: .flush
        case .semiSync: .semiSync
        case .sync: .sync
        }
    }
}
