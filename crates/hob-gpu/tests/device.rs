//! The device as a whole: compiled kernels on disk, loss, memory that runs out.

mod common;

use std::fs;

use common::{contents, gpu, values};
use hob_compute::{Buf, Compute, ComputeError, Map};
use hob_gpu::{Gpu, GpuConfig, adapters};
use hob_testkit::temp::TempDir;

/// Two kernels' worth of work; what it gives.
fn work(dev: &mut dyn Compute) -> Vec<f32> {
    let data = values(3, 500);
    let (x, y) = (dev.alloc(5, 100).unwrap(), dev.alloc(5, 100).unwrap());
    dev.upload(x, 0, &data).unwrap();
    dev.map(&Map::Scale { a: x, factor: 2.0, out: y, rows: 5 }).unwrap();
    dev.map(&Map::Add { a: x, b: y, out: y, rows: 5 }).unwrap();
    let out = contents(dev, y, 500);
    [x, y].into_iter().for_each(|buf| dev.free(buf).unwrap());
    out
}

#[test]
fn kernels_on_disk_serve_the_next_start_and_damaged_or_foreign_ones_are_ignored() {
    let Some(dev) = gpu(false, "") else { return };
    let adapter = adapters().iter().position(|a| a == dev.facts()).unwrap();
    let folder = TempDir::new("kernels");
    let cache = folder.path().join("kernels");
    let config = GpuConfig { adapter, cache: Some(cache.clone()), ..GpuConfig::default() };
    let run = || work(&mut Gpu::open(&config).unwrap());
    let expected = run();
    let stored: Vec<_> = fs::read_dir(&cache).unwrap().map(|e| e.unwrap().path()).collect();
    let [file] = stored.as_slice() else { panic!("expected one file of kernels, found {stored:?}") };
    let good = fs::read(file).unwrap();
    assert_eq!(run(), expected);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut foreign = good.clone();
    foreign[8] ^= 1;
    for bad in [&flipped[..], &good[..good.len() / 2], b"", &[0xff; 4096], &foreign] {
        fs::write(file, bad).unwrap();
        assert_eq!(run(), expected);
        let healed = fs::read(file).unwrap();
        assert!(healed.len() > 100 && healed != bad, "a file that was ignored is written anew");
    }
    // A folder that cannot be one.
    let config = GpuConfig { cache: Some(file.join("below a file")), ..config };
    assert_eq!(work(&mut Gpu::open(&config).unwrap()), expected);
}

/// Asserts that a call failed because the device is gone.
fn is_lost<T>(result: hob_compute::Result<T>) -> bool {
    match result {
        Err(ComputeError::Lost { .. }) => true,
        Err(other) => panic!("expected a lost device, found {other}"),
        Ok(_) => false,
    }
}

#[test]
fn a_lost_device_is_an_error_of_every_later_call_and_lets_go_of_all() {
    let Some(mut dev) = gpu(false, "") else { return };
    let x = dev.alloc(5, 100).unwrap();
    let y = dev.alloc(5, 100).unwrap();
    let scale = |out: Buf| Map::Scale { a: x, factor: 2.0, out, rows: 5 };
    // Something is recorded, something submitted, a result on its way.
    dev.map(&scale(y)).unwrap();
    let ticket = dev.submit().unwrap();
    dev.map(&scale(y)).unwrap();
    dev.lose();
    let mut picked = hob_compute::Picked::default();
    for _ in 0..3 {
        // Recording may still pass; what needs the device says what happened.
        let _ = dev.map(&scale(y));
        assert!(is_lost(dev.download(y, 0, &mut [0.0; 500])));
        assert!(is_lost(dev.upload(x, 0, &[1.0; 500])));
        assert!(is_lost(dev.alloc(5, 100)));
        assert!(is_lost(dev.submit()));
        // A kernel that was never made.
        assert!(is_lost(dev.map(&Map::Softcap { a: x, cap: 2.0, out: y, rows: 5 })));
    }
    assert!(dev.picked(ticket, &mut picked).is_err());
    let error = dev.download(y, 0, &mut [0.0; 500]).unwrap_err().to_string();
    assert!(error.contains(&dev.facts().name) && error.contains("lost"), "{error}");
    // The handles go, whatever the device says to it.
    let held = dev.held_bytes().buffers;
    let _ = dev.free(x);
    assert!(dev.held_bytes().buffers < held);
    drop(dev);
    // The process goes on with another device.
    work(&mut gpu(false, "").unwrap());
}

#[test]
fn memory_that_runs_out_is_told_and_the_device_goes_on() {
    let Some(mut dev) = gpu(false, "") else { return };
    // More pieces than any card has room for; a software adapter takes the memory when it is written, if ever.
    let bytes = dev.facts().binding_bytes.min(dev.facts().buffer_bytes);
    let width = 1 << 20;
    let rows = (bytes / 4 / width as u64) as usize;
    let most = dev.facts().memory_bytes.unwrap_or(1 << 38) / bytes + 2;
    let mut held = Vec::new();
    let refused = (0..most).find_map(|_| match dev.alloc(rows, width) {
        Ok(buf) => {
            held.push(buf);
            None
        }
        Err(e) => Some(e),
    });
    match refused {
        Some(ComputeError::Memory { bytes: wanted, .. }) => assert_eq!(wanted, 4 * (rows * width) as u64),
        Some(other) => panic!("expected an error of memory, found {other}"),
        None => println!("skipped: this driver promises more memory than it has"),
    }
    held.into_iter().for_each(|buf| dev.free(buf).unwrap());
    work(&mut dev);
    // A piece beyond what one binding shows.
    let error = dev.alloc(rows + 1, width).unwrap_err().to_string();
    assert!(error.contains("in one piece"), "{error}");
}

#[test]
fn an_adapter_or_feature_that_is_not_there_is_named() {
    let count = adapters().len();
    let none = |config| Gpu::open(&config).err().expect("an error").to_string();
    let error = none(GpuConfig { adapter: count + 7, ..GpuConfig::default() });
    assert!(error.contains(&format!("found {}", count + 7)), "{error}");
    if count > 0 {
        let error = none(GpuConfig { off: "coop,warp".into(), ..GpuConfig::default() });
        assert!(error.contains("'warp'") && error.contains("subgroups"), "{error}");
    }
}
