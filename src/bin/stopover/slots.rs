//! How many connections there may be, and of whom.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use stopover::values::address::neighbourhood;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::listener::{Listener, accept};

/// Admission control: an address may have at most half of all connections, and so may an IPv6 /64. Loopback may have
/// all, because a proxy on this machine has the connections of every client.
pub(crate) struct ConnectionSlots {
    free: Arc<Semaphore>,
    share: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's slot, until it is dropped.
pub(crate) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    caller: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlots {
    pub(crate) fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), share: most.div_ceil(2), taken: Mutex::default() }
    }

    /// The next connection that gets a slot. Others wait in the listen queue; a connection is closed if its address has
    /// its share already.
    pub(crate) async fn accept<L: Listener>(
        self: &Arc<Self>,
        listener: &L,
    ) -> (L::Accepted, SocketAddr, ConnectionSlot) {
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else { return std::future::pending().await };
            let (connection, address) = accept(listener).await;
            if let Some(slot) = self.take(neighbourhood(address.ip()), permit) {
                return (connection, address, slot);
            }
            tracing::debug!(caller = %address.ip(), "a connection was closed: its address has too many");
        }
    }

    fn take(self: &Arc<Self>, caller: IpAddr, permit: OwnedSemaphorePermit) -> Option<ConnectionSlot> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_caller = taken.entry(caller).or_default();
        if *of_caller >= self.share && !caller.is_loopback() {
            return None;
        }
        *of_caller += 1;
        Some(ConnectionSlot { slots: Arc::clone(self), caller, _permit: permit })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_caller) = taken.get_mut(&self.caller) {
            *of_caller -= 1;
            if *of_caller == 0 {
                taken.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_has_more_than_half_of_the_connections_but_this_machine() {
        let slots = Arc::new(ConnectionSlots::new(8));
        let mut taken = Vec::new();
        for (caller, most) in [("10.1.2.3", 4), ("127.0.0.1", 4)] {
            for number in 0..8 - taken.len() {
                let permit = Arc::clone(&slots.free).try_acquire_owned().unwrap();
                let place = slots.take(neighbourhood(caller.parse().unwrap()), permit);
                assert_eq!(place.is_some(), number < most, "{caller} {number}");
                taken.extend(place);
            }
        }
        taken.remove(0);
        let permit = Arc::clone(&slots.free).try_acquire_owned().unwrap();
        assert!(slots.take("10.1.2.3".parse().unwrap(), permit).is_some(), "one of them has ended");
        let slots = Arc::new(ConnectionSlots::new(8));
        let all = (0..8)
            .map(|_| slots.take("127.0.0.1".parse().unwrap(), Arc::clone(&slots.free).try_acquire_owned().unwrap()));
        assert_eq!(all.collect::<Vec<_>>().iter().flatten().count(), 8, "a proxy has everybody's");
    }
}
