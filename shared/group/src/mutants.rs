//! Faults that tests build into the machines on purpose, to show that the simulations find them.
//! In a build without tests every method is `false`, and the compiler removes it.

macro_rules! mutants {
    (
        machines { $($(#[$about:meta])* $variant:ident => $method:ident,)* }
        simulations { $($(#[$other_about:meta])* $other:ident,)* }
    ) => {
        /// A fault.
        #[cfg(test)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Mutant {
            $($(#[$about])* $variant,)*
            $($(#[$other_about])* $other,)*
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
    machines {
        /// A member commits delivered records before they are handled.
        CommitBeforeSend => commits_before_send,
        /// A member counts its lease from the arrival of the grant.
        LeaseFromArrival => lease_from_arrival,
        /// The coordinator grants a shard before its holder has stopped.
        NoHoldBack => does_not_hold_back,
        /// The coordinator distributes the shards of a group with a single active member.
        Even => distributes_single_active,
        /// The coordinator grants the next active member each shard as soon as it is free.
        ShardByShard => moves_shard_by_shard,
        /// The coordinator refuses positions of members that do not hold the shard.
        RefuseLate => refuses_late_positions,
        /// The coordinator does not wait for the other members of a group that returns.
        SettleByClock => settles_by_its_clock,
        /// The coordinator keeps the newest range of a position, not the union.
        Newest => keeps_the_newest,
        /// A member takes a guessed start for a position: everything before it counts as handled.
        GuessIsKnown => takes_guesses_for_known,
        /// The coordinator clamps positions to what the stream has announced.
        Clamp => clamps_positions,
        /// The coordinator says of no records that a former owner may have handled them.
        NoDoubts => has_no_doubts,
        /// The coordinator acknowledges the destinations of a client before publishers do.
        AcknowledgeClients => acknowledges_clients_at_once,
        /// A client believes in its registration although nobody answers.
        NeverLapses => never_lapses,
        /// A keeper that was complete while it prepared does not request again when it owns.
        AsksOnce => requests_once,
        /// A keeper regards an entry as stored as soon as it is sent.
        TakesSentForStored => takes_sent_for_stored,
        /// A reader delivers live batches at once, whatever is missing before them.
        HoldsNothing => holds_nothing,
        /// A reader regards a request as answered in full when it ends.
        BelievesTheEnd => believes_the_end,
    }
    simulations {
        /// A publisher acknowledges a list before its capture threads filter by it.
        AcknowledgeUnapplied,
        /// Users do not put their entries again for another coordinator.
        NobodyReplays,
    }
}
