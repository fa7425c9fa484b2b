//! The engine on RocksDB: the only module that uses the crate `rocksdb`.
//!
//! The write-ahead log is on and not synced per batch: a killed process loses nothing, a dead machine loses the MDT, as
//! it loses the node's other data. Memory is what counts at the start of a job: the memtable's arena grows by 256 KiB as it
//! fills, and nothing else is allocated ahead.

use std::path::Path;

use rocksdb::{BlockBasedOptions, Cache, DB, LogLevel, Options, ReadOptions, WriteBatch};

use super::{Change, Engine, Pair, StoreError};

const MEMTABLE_BYTES: usize = 32 << 20;
const ARENA_BLOCK_BYTES: usize = 256 << 10;
const BLOCK_CACHE_BYTES: usize = 16 << 20;
const INFO_LOG_BYTES: usize = 256 << 10;

/// One RocksDB database in a directory of its own.
pub struct RocksEngine {
    db: DB,
}

impl RocksEngine {
    /// Opens the database in `dir`, or makes one there.
    pub fn open(dir: &Path) -> Result<RocksEngine, StoreError> {
        Ok(RocksEngine { db: DB::open(&options(), dir).map_err(engine_error)? })
    }
}

fn engine_error(error: rocksdb::Error) -> StoreError {
    // RocksDB's C interface has no code for it, only the text that its file system layer wrote.
    let is_full = error.to_string().contains("No space left on device");
    if is_full { StoreError::NoSpace(Box::new(error)) } else { StoreError::Engine(Box::new(error)) }
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_max_file_opening_threads(1);
    options.set_skip_stats_update_on_db_open(true);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(1);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_manifest_preallocation_size(64 << 10);
    options
}

impl Engine for RocksEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get(key).map_err(engine_error)
    }

    fn scan(&self, from: &[u8], until: &[u8], limit: usize) -> Result<Vec<Pair>, StoreError> {
        if from >= until {
            return Ok(Vec::new());
        }
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(until);
        let mut iterator = self.db.raw_iterator_opt(read);
        iterator.seek(from);
        let mut pairs = Vec::new();
        while pairs.len() < limit {
            let Some((key, value)) = iterator.item() else { break };
            pairs.push((key.to_vec(), value.to_vec()));
            iterator.next();
        }
        iterator.status().map_err(engine_error)?;
        Ok(pairs)
    }

    fn commit(&self, batch: Vec<Change>) -> Result<(), StoreError> {
        let mut write = WriteBatch::default();
        for (key, value) in batch {
            match value {
                Some(value) => write.put(key, value),
                None => write.delete(key),
            }
        }
        self.db.write(write).map_err(engine_error)
    }
}
