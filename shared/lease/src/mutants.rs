//! Faults that tests build into the machines on purpose, to show that the simulation finds them. In
//! a build without tests every method is `false`, and the compiler removes it.

macro_rules! mutants {
    ($($(#[$about:meta])* $variant:ident => $method:ident,)*) => {
        /// A fault.
        #[cfg(test)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mutant {
            $($(#[$about])* $variant,)*
        }

        /// The fault that a machine has, if any.
        #[derive(Clone, Copy, Debug, Default)]
        pub(crate) struct Mutants(#[cfg(test)] pub(crate) Option<Mutant>);

        impl Mutants {
            $(
                $(#[$about])*
                #[inline]
                pub(crate) fn $method(self) -> bool {
                    #[cfg(test)]
                    return self.0 == Some(Mutant::$variant);
                    #[cfg(not(test))]
                    false
                }
            )*
        }
    };
}

mutants! {
    /// A member counts its lease from the arrival of the acknowledgement.
    LeaseFromArrival => lease_from_arrival,
    /// A member that is declared gone, or whose key was not renewed, is overwritten whatever its
    /// revision is.
    GoneAtAnyRevision => gone_at_any_revision,
    /// A member is declared gone at once when its lease should have ended by its own words.
    GoneTooSoon => gone_too_soon,
    /// Other members are declared gone right after an outage of one's own.
    NoFreshWatch => watches_nothing_afresh,
    /// The planner gives a shard away before its owner has released it.
    TakeUnreleased => takes_unreleased,
    /// A member goes on after its key was written by another.
    IgnoreGone => ignores_gone,
    /// A member releases a shard whose deliveries are not handled yet, and may still act on them.
    ReleaseUnhandled => releases_unhandled,
    /// A position moves past batches that are delivered, not handled.
    CommitDelivered => commits_delivered,
    /// A write without an answer counts as failed for good.
    UnknownIsFailed => takes_unknown_for_failed,
    /// The planner forgets what a gone member's key says of positions.
    ForgetPositions => forgets_positions,
    /// The planner deletes the key of a gone member before the assignment has its positions.
    DeleteUnabsorbed => deletes_unabsorbed,
    /// A position in a stream that was deleted is taken for one in its successor.
    IgnoreCreated => ignores_created,
    /// The active member of a group takes over shard by shard.
    ShardByShard => moves_shard_by_shard,
    /// What the servers have evicted is not counted.
    CountNoEviction => counts_no_eviction,
}
