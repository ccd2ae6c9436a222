//! Maximum number of datagrams per second: a token bucket. Own code instead of a crate, because it
//! is short, has no locks, and takes the time as an argument.

use std::time::Instant;

/// A bucket that holds one second's worth of tokens, and is full at first.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    per_second: u32,
    /// In billionths of a token, so that frequent calls lose nothing to rounding.
    billionths: u64,
    filled_at: Instant,
}

const TOKEN: u64 = 1_000_000_000;

impl TokenBucket {
    pub(crate) fn new(per_second: u32, now: Instant) -> TokenBucket {
        TokenBucket { per_second, billionths: u64::from(per_second) * TOKEN, filled_at: now }
    }

    /// Adds the tokens since the last call.
    pub(crate) fn fill(&mut self, now: Instant) {
        let elapsed_ns = u64::try_from(now.saturating_duration_since(self.filled_at).as_nanos()).unwrap_or(u64::MAX);
        let full = u64::from(self.per_second) * TOKEN;
        self.billionths = elapsed_ns.saturating_mul(self.per_second.into()).saturating_add(self.billionths).min(full);
        self.filled_at = now;
    }

    /// Takes a token; `false`: the bucket is empty.
    pub(crate) fn take(&mut self) -> bool {
        let left = self.billionths.checked_sub(TOKEN);
        self.billionths = left.unwrap_or(self.billionths);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn taken(bucket: &mut TokenBucket, tries: usize) -> usize {
        (0..tries).filter(|_| bucket.take()).count()
    }

    #[test]
    fn bucket_holds_one_second_of_tokens() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(10, start);
        assert_eq!(taken(&mut bucket, 100), 10);
        bucket.fill(start + Duration::from_millis(250));
        assert_eq!(taken(&mut bucket, 100), 2);
        bucket.fill(start + Duration::from_millis(300));
        assert_eq!(taken(&mut bucket, 100), 1, "half a token was kept");
        bucket.fill(start + Duration::from_secs(3600));
        assert_eq!(taken(&mut bucket, 100), 10);
    }

    #[test]
    fn many_small_steps_add_up_to_one_large_one() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, start);
        assert_eq!(taken(&mut bucket, 10), 3);
        let steps = 1_000_000;
        let taken: usize = (1..=steps)
            .map(|step| {
                bucket.fill(start + Duration::from_nanos(step * 10_000));
                taken(&mut bucket, 1)
            })
            .sum();
        assert_eq!(taken, 30, "ten seconds of three per second");
    }
}
