//! Harness and fixtures of the test rings.
