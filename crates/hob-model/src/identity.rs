//! What the bits of pages and recurrent state depend on, in 32 bytes. It must not know where state is kept.

use hob_compute::{BLOCK_POSITIONS, DeviceInfo, NUMERICS_REVISION, PAGE_POSITIONS};

use crate::{Layout, ModelInfo, Placement};

/// See [`crate::Model::identity`]. `frequencies` are the rotary tables in use, which may depend on the context.
pub(crate) fn identity(
    model_id: &str,
    info: &ModelInfo,
    layout: &Layout,
    device: &DeviceInfo,
    frequencies: &[Vec<f32>],
) -> [u8; 32] {
    let mut hash = blake3::Hasher::new_derive_key("hob state of a sequence");
    let mut field = |bytes: &[u8]| {
        // Lengths keep neighbors apart.
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(model_id.as_bytes());
    // The numbers of a config print exactly.
    field(format!("{:?}", info.config).as_bytes());
    let formats = (0..info.config.layers.len()).map(|layer| info.kv_pair(&layout.kv, layer));
    formats.for_each(|pair| field(format!("{}/{}", pair.k, pair.v).as_bytes()));
    for table in frequencies {
        field(&table.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<u8>>());
    }
    let sizes = [PAGE_POSITIONS as u32, BLOCK_POSITIONS as u32, NUMERICS_REVISION, device.exact.into()];
    sizes.iter().for_each(|size| field(&size.to_le_bytes()));
    field(device.kind.as_bytes());
    field(device.isa.as_bytes());
    field(device.adapter.as_bytes());
    // Which device computed which layer shows in the bits.
    if layout.placement != Placement::default() {
        field(format!("{:?}", layout.placement).as_bytes());
    }
    *hash.finalize().as_bytes()
}
