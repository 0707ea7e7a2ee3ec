//! What the kernel program says when it is asked to.

use std::{
    io::Write,
    sync::{Arc, Mutex, PoisonError},
};

use sluice_agent::kernel::LoadOptions;

use crate::namespace::{By, Scene, eventually, in_namespace};

#[test]
#[ignore = "needs root: cargo xtask test"]
fn the_kernel_log_tells_each_decision_when_asked_to() {
    let lines = Lines::default();
    // Written by a thread of its own, so a subscriber of this thread alone would not see it; no other test logs.
    tracing::subscriber::set_global_default(tracing_subscriber::fmt().with_writer(lines.clone()).finish()).unwrap();
    in_namespace(move || {
        let mut scene = Scene::with(LoadOptions { log: true });
        scene.app("127.0.0.1:8080", false);
        scene.exempting(&[8080], &["127.5.0.0/16"]);
        assert_eq!(scene.connect_from(Some("127.6.0.1"), "127.0.0.1:8080").0, By::Agent);
        assert_eq!(scene.connect_from(Some("127.5.0.1"), "127.0.0.1:8080").0, By::App);
        eventually("both decisions are logged", || {
            let text = lines.text();
            text.contains("port 8080 from ::ffff:127.6.0.1: to the agent")
                && text.contains("port 8080 from ::ffff:127.5.0.1: exempt, to the app")
        });
    });
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
