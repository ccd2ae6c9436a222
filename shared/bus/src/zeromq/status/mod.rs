//! The way of status: services send it over their control connections, the control plane passes it
//! to the relay, and the relay publishes it.
//!
//! ```text
//! StatusReporter ─DEALER─▶ ControlPlane + StatusBoard ═ StatusOutlet ═▶ Relay ─XPUB─▶ EventSubscriber
//!  + StatusSender          ◀═══════════ is wanted ═════════════════════
//! ```
//! ═ is a bounded channel, or a flag, between the two threads of the proxy.

mod reporter;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use sekiwake_group::Publication;

pub(crate) use reporter::StatusReporter;

use crate::{BusError, bell::Bell};

/// The most parts that wait for the relay: 8 MiB.
const MAX_WAITING: usize = 512;

/// The end of the relay, which knows the subscriptions.
#[derive(Debug)]
pub struct StatusOutlet {
    is_wanted: Arc<AtomicBool>,
    waiting: Receiver<Publication>,
    bell: Arc<Bell>,
}

/// The end of the control plane.
#[derive(Debug)]
pub struct StatusInlet {
    is_wanted: Arc<AtomicBool>,
    waiting: Sender<Publication>,
    /// Rung after each publication.
    bell: Arc<Bell>,
}

/// Connects a control plane with the relay that publishes the status it receives.
///
/// # Errors
/// No descriptor is left.
pub fn status_channel() -> Result<(StatusInlet, StatusOutlet), BusError> {
    let is_wanted = Arc::new(AtomicBool::new(false));
    let (sender, receiver) = bounded(MAX_WAITING);
    let bell = Arc::new(Bell::new().map_err(BusError::Wake)?);
    let inlet = StatusInlet { is_wanted: Arc::clone(&is_wanted), waiting: sender, bell: Arc::clone(&bell) };
    Ok((inlet, StatusOutlet { is_wanted, waiting: receiver, bell }))
}

impl StatusOutlet {
    pub(crate) fn set_wanted(&self, is_wanted: bool) {
        self.is_wanted.store(is_wanted, Ordering::Relaxed);
    }

    /// Ends the relay's wait.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(crate) fn has_next(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(crate) fn next(&self) -> Option<Publication> {
        self.waiting.try_recv().ok()
    }
}

impl StatusInlet {
    pub(crate) fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    /// Returns `false` if there is no room.
    pub(crate) fn push(&self, publication: Publication) -> bool {
        let has_room = self.waiting.try_send(publication).is_ok();
        self.bell.ring();
        has_room
    }
}
