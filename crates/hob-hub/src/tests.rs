//! Tests by failure mode. Everything happens in temporary folders and on loopback; the one test that
//! downloads for real wants `HOB_TEST_NETWORK=1`.

mod fake_hub;
#[cfg(unix)]
mod fake_pip;
mod foreign;
mod hub_repo;
mod hub_source;
mod landing;
mod names;
mod network;
mod removal;
mod resolving;
mod settings;
mod support;
#[cfg(unix)]
mod wheel_source;
