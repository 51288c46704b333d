//! Free pages of the pools. Nothing grows after `new`, so that taking and returning a page allocates nothing.

use hob_compute::{Compute, Page, PageSpec, Pool};

use crate::Result;
use crate::info::page_spec;
use crate::{LayerState, Layout, ModelInfo};

struct Shape {
    spec: PageSpec,
    pool: Pool,
    /// The next page to hand out is the last.
    free: Vec<u32>,
}

/// One pool per distinct page shape, and the shape of each layer.
pub(crate) struct PagePools {
    shapes: Vec<Shape>,
    /// Index into `shapes`; `None` for layers without pages.
    of_layer: Vec<Option<usize>>,
}

impl PagePools {
    /// Reserves the pages of every sequence and layer. What was reserved is released when a later pool fails.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(info: &ModelInfo, layout: &Layout, dev: &mut dyn Compute) -> Result<Self> {
        let mut pools = PagePools { shapes: Vec::new(), of_layer: Vec::new() };
        for (spec, count) in info.page_needs(layout) {
            match dev.alloc_pages(&spec, count) {
                Ok(pool) => {
                    // Low pages first: they are the ones whose memory was touched before.
                    let free = (0..count).rev().map(|i| i as u32).collect();
                    pools.shapes.push(Shape { spec, pool, free });
                }
                Err(e) => {
                    pools.release(dev)?;
                    return Err(e.into());
                }
            }
        }
        let at = |state: &LayerState| {
            let spec = page_spec(*state)?;
            pools.shapes.iter().position(|s| s.spec == spec)
        };
        pools.of_layer = info.states().iter().map(at).collect();
        Ok(pools)
    }

    /// Whether `layer` keeps anything in pages.
    pub fn has(&self, layer: usize) -> bool {
        self.of_layer[layer].is_some()
    }

    /// A page for `layer`; `None` when its pool is used up.
    pub fn take(&mut self, layer: usize) -> Option<Page> {
        let shape = &mut self.shapes[self.of_layer[layer]?];
        Some(Page { pool: shape.pool, index: shape.free.pop()? })
    }

    pub fn give_back(&mut self, layer: usize, page: Page) {
        if let Some(shape) = self.of_layer[layer] {
            self.shapes[shape].free.push(page.index);
        }
    }

    /// # Errors
    /// What the device says.
    pub fn release(self, dev: &mut dyn Compute) -> Result<()> {
        for shape in self.shapes {
            dev.free_pages(shape.pool)?;
        }
        Ok(())
    }
}
