//! CUBIC that never stops a connection from being heard.
//!
//! Owns the least that may be in flight. Runs at every packet that is acknowledged or lost, within quinn. It does not
//! choose how fast a healthy way is filled: that is CUBIC (RFC 9438) as quinn has it.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::Controller;
use quinn::congestion::ControllerFactory;
use quinn::congestion::ControllerMetrics;
use quinn::congestion::CubicConfig;
use quinn_proto::RttEstimator;

/// Datagrams that may always be in flight: as many as a connection begins with (RFC 9002, 7.2).
///
/// CUBIC goes down to two, and as quinn sends no datagram that would fill the window to its last byte, that is one. A
/// keep-alive is counted as well. So where packets are lost often, a single lost one keeps everything back until its
/// probe timeout, which doubles each time and grows with every late acknowledgement; both ends then say nothing for
/// longer than [`IDLE_LIMIT`](crate::transport::IDLE_LIMIT) over a way that lets two packets of three through. Ending
/// the connection would not spare the way anything: the next one would begin with this many.
const LEAST_DATAGRAMS: u64 = 10;

/// Makes [`Floored`] controllers.
#[derive(Default)]
pub(crate) struct FlooredConfig(Arc<CubicConfig>);

impl ControllerFactory for FlooredConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floored { cubic: Arc::clone(&self.0).build(now, current_mtu), least: least(current_mtu) })
    }
}

/// CUBIC with a floor.
struct Floored {
    cubic: Box<dyn Controller>,
    /// In bytes.
    least: u64,
}

fn least(mtu: u16) -> u64 {
    LEAST_DATAGRAMS * u64::from(mtu)
}

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
        self.least = least(new_mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window().max(self.least)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.cubic.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { cubic: self.cubic.clone_box(), least: self.least })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a datagram holds before and after the way's size is known.
    const MTUS: [u16; 2] = [1200, 1452];

    #[test]
    fn however_much_is_lost_a_connection_goes_on_with_what_a_new_one_begins_with() {
        let now = Instant::now();
        let cubic = Arc::new(CubicConfig::default()).build(now, MTUS[0]);
        let floored = Arc::new(FlooredConfig::default()).build(now, MTUS[0]);
        assert_eq!(floored.window(), cubic.window(), "a new connection is like any other");
        for mut controller in [floored.clone_box(), floored] {
            controller.on_congestion_event(now, now, true, 1 << 20);
            assert_eq!(controller.window(), 12_000);
            controller.on_mtu_update(MTUS[1]);
            assert_eq!(controller.window(), 14_520);
            assert_eq!(controller.metrics().congestion_window, 14_520);
        }
    }
}
