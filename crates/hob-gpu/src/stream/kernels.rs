//! Kernels of a stream: compiled once per key. It must not know what they compute.

use std::collections::HashMap;

use hob_compute::{ComputeError, Result};

use super::{Access, Bounds, IMMEDIATE_WORDS, Kernel, KernelKey, Source};
use crate::context::Context;

pub(super) struct Compiled {
    pub key: KernelKey,
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub bindings: usize,
}

/// Compiled kernels by their keys.
#[derive(Default)]
pub(super) struct Kernels {
    all: Vec<Compiled>,
    by_key: HashMap<KernelKey, Kernel>,
    /// What was compiled, for the test that translates it.
    #[cfg(test)]
    pub texts: Vec<(KernelKey, String)>,
}

impl Kernels {
    pub fn find(&self, key: &KernelKey) -> Option<Kernel> {
        self.by_key.get(key).copied()
    }

    pub fn get(&self, kernel: Kernel) -> &Compiled {
        &self.all[kernel.0 as usize]
    }

    pub fn add(
        &mut self,
        context: &Context,
        key: KernelKey,
        source: &Source,
        bounds: Bounds,
    ) -> Result<Kernel> {
        let compiled = compile(context, key, source, bounds)?;
        #[cfg(test)]
        self.texts.push((key, source.wgsl.clone()));
        self.all.push(compiled);
        let kernel = Kernel(self.all.len() as u32 - 1);
        self.by_key.insert(key, kernel);
        Ok(kernel)
    }
}

fn bind_layout(context: &Context, key: KernelKey, bindings: &[Access]) -> wgpu::BindGroupLayout {
    let entry = |(i, access): (usize, &Access)| wgpu::BindGroupLayoutEntry {
        binding: i as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let entries: Vec<_> = bindings.iter().enumerate().map(entry).collect();
    let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(key.name), entries: &entries };
    context.device.create_bind_group_layout(&descriptor)
}

fn compile(context: &Context, key: KernelKey, source: &Source, bounds: Bounds) -> Result<Compiled> {
    context.check()?;
    let device = &context.device;
    let refused = |problem: String| {
        let problem = format!("kernel {} {:?} was refused: {problem}", key.name, key.params);
        ComputeError::Device { device: context.facts.name.clone(), problem }
    };
    // A driver that fails inside its compiler reports an internal error.
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let layout = bind_layout(context, key, &source.bindings);
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(key.name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 4 * IMMEDIATE_WORDS as u32,
    });
    let checks = wgpu::ShaderRuntimeChecks {
        force_loop_bounding: false,
        bounds_checks: bounds == Bounds::Checked,
        ..Default::default()
    };
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(key.name),
        source: wgpu::ShaderSource::Wgsl(source.wgsl.as_str().into()),
    };
    // SAFETY: the kernels' loops are all counted; a kernel without bounds checks has indices bounded by its text.
    #[allow(unsafe_code)]
    let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(key.name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        },
        cache: context.pipelines.as_ref(),
    });
    let (invalid, internal) = (pollster::block_on(scope.pop()), pollster::block_on(internal.pop()));
    match invalid.or(internal) {
        Some(e) => context.check().and(Err(refused(e.to_string()))),
        None => Ok(Compiled { key, pipeline, layout, bindings: source.bindings.len() }),
    }
}
