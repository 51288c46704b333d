//! The GPUs that are here, asked through `hob_gpu`. It must not know what is done with the answers.

use hob_gpu::GpuConfig;

use super::{GpuFacts, GpuProber, GpuRates};

/// Asks the drivers of this machine.
pub struct RealGpus<'a> {
    config: GpuConfig,
    /// Told the name of an adapter before it is measured.
    before: &'a dyn Fn(&str),
}

impl<'a> RealGpus<'a> {
    /// Adapters are opened as `config` says, whatever its index.
    pub fn new(config: GpuConfig, before: &'a dyn Fn(&str)) -> Self {
        Self { config, before }
    }
}

impl GpuProber for RealGpus<'_> {
    fn adapters(&mut self) -> Vec<GpuFacts> {
        let facts = |(index, a): (usize, hob_gpu::AdapterFacts)| {
            let tier = a.tier.without(&self.config.off);
            let problem = tier.as_ref().err().cloned();
            GpuFacts {
                index,
                name: a.name,
                backend: a.backend,
                driver: a.driver,
                tier: tier.unwrap_or(a.tier).to_string(),
                integrated: a.integrated,
                software: a.software,
                memory_bytes: a.memory_bytes,
                free_bytes: a.free_bytes,
                binding_bytes: a.binding_bytes.min(a.buffer_bytes),
                rates: None,
                problem,
            }
        };
        hob_gpu::adapters().into_iter().enumerate().map(facts).collect()
    }

    fn measure(&mut self, index: usize) -> Result<GpuRates, String> {
        if let Some(facts) = hob_gpu::adapters().get(index) {
            (self.before)(&facts.name);
        }
        let config = GpuConfig { adapter: index, ..self.config.clone() };
        let mut gpu = hob_gpu::Gpu::open(&config).map_err(|e| e.to_string())?;
        let found = gpu.probe().map_err(|e| e.to_string())?;
        Ok(GpuRates {
            read_gb_per_s: found.read_gb_per_s,
            tflops: found.tflops,
            round_trip_micros: found.round_trip_micros,
            dispatch_micros: found.dispatch_micros,
            upload_gb_per_s: found.upload_gb_per_s,
            download_gb_per_s: found.download_gb_per_s,
        })
    }
}
