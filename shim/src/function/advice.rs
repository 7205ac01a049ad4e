//! What a platform advises for a function and its image.

use crate::FunctionConfig;
use crate::platform::{ImageMemory, Warning};

/// The warnings for an image of this packed size.
pub(super) fn image(config: &FunctionConfig, packed_bytes: u64) -> Vec<Warning> {
    let advised = config.platform.limits().image_memory;
    let row = advised.iter().find(|row| packed_bytes <= row.image_bytes);
    row.filter(|row| config.memory_mib < row.memory_mib)
        .map(|row| memory(config, packed_bytes, row))
        .into_iter()
        .collect()
}

fn memory(config: &FunctionConfig, packed_bytes: u64, row: &ImageMemory) -> Warning {
    let name = config.platform.name();
    let range = match row.enough_mib {
        Some(enough) => format!("{} to {enough} MiB", row.memory_mib),
        None => format!("{} MiB or more", row.memory_mib),
    };
    Warning {
        kind: "memory_below_advice",
        message: format!(
            "the function has {} MiB of memory; for an image of {packed_bytes} bytes {name} advises {range}",
            config.memory_mib
        ),
        advice: format!("give it {} MiB of memory or more", row.memory_mib),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{fc, scf};

    fn warned(memory_mib: u32, packed_bytes: u64) -> Vec<Warning> {
        let mut config = FunctionConfig::new("resize", scf());
        config.memory_mib = memory_mib;
        config.image_warnings(packed_bytes)
    }

    #[test]
    fn each_row_of_the_table_has_its_least_memory() {
        const MIB: u64 = 1 << 20;
        for (memory, largest) in [(256, 256 * MIB), (512, 512 * MIB), (1024, 1024 * MIB)] {
            assert_eq!(warned(memory, largest), []);
            let warnings = warned(memory - 128, largest);
            assert_eq!(warnings.len(), 1, "{memory}");
            assert_eq!(warnings[0].kind, "memory_below_advice");
            assert!(warnings[0].message.contains(&largest.to_string()), "{warnings:?}");
            assert!(warnings[0].advice.contains(&memory.to_string()), "{warnings:?}");
        }
        assert_eq!(warned(256, 256 * MIB + 1).len(), 1, "the next row");
        assert_eq!(warned(3072, 1), []);
    }

    #[test]
    fn a_platform_that_advises_nothing_has_no_warnings() {
        assert_eq!(FunctionConfig::new("resize", fc()).image_warnings(5 << 30), []);
    }
}
