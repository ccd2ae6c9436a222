//! x
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    NoHoldBack,
    CommitBeforeSend,
    LeaseFromArrival,
}
