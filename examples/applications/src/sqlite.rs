//! Vectors in an SQLite database, with the extension sqlite-vec.

use std::ffi::{c_char, c_int};
use std::path::Path;

use anyhow::{Result, ensure};
use qwen3_embed::Embeddings;
use rusqlite::{Connection, ffi, params};

/// A table of vectors. A vector's key is its position in the order in which the vectors were added.
#[derive(Debug)]
pub struct Index {
    database: Connection,
}

impl Index {
    /// Opens a database, or makes one for vectors of this number of dimensions.
    ///
    /// # Errors
    ///
    /// If the file is not such a database, or has vectors of another number of dimensions.
    pub fn open(path: &Path, dimensions: usize) -> Result<Self> {
        register_extension()?;
        let database = Connection::open(path)?;
        database.execute_batch(&format!(
            "CREATE VIRTUAL TABLE IF NOT EXISTS vectors
             USING vec0(vector float[{dimensions}] distance_metric=cosine)"
        ))?;
        let schema: String = database.query_row(
            "SELECT sql FROM sqlite_master WHERE name = 'vectors'",
            [],
            |row| row.get(0),
        )?;
        ensure!(
            schema.contains(&format!("float[{dimensions}]")),
            "{} was made for another number of dimensions than {dimensions}: {schema}",
            path.display()
        );
        Ok(Self { database })
    }

    /// The number of vectors.
    ///
    /// # Errors
    ///
    /// If the database cannot be read.
    pub fn n_vectors(&self) -> Result<usize> {
        let count = "SELECT count(*) FROM vectors";
        Ok(usize::try_from(self.database.query_row(count, [], |row| row.get::<_, i64>(0))?)?)
    }

    /// Adds vectors, all or none of them.
    ///
    /// # Errors
    ///
    /// If the database cannot be written.
    pub fn add(&mut self, vectors: &Embeddings) -> Result<()> {
        let first = self.n_vectors()?;
        let transaction = self.database.transaction()?;
        for (i, vector) in vectors.iter().enumerate() {
            let key = i64::try_from(first + i)?;
            transaction.execute(
                "INSERT INTO vectors(rowid, vector) VALUES (?, ?)",
                params![key, bytes(vector)],
            )?;
        }
        Ok(transaction.commit()?)
    }

    /// The `k` vectors nearest to `query` with their cosine similarities, the nearest first.
    ///
    /// # Errors
    ///
    /// If the database cannot be read.
    pub fn search(&self, query: &[f32], k: usize) -> Result<Vec<(usize, f32)>> {
        let mut statement = self.database.prepare_cached(
            "SELECT rowid, distance FROM vectors WHERE vector MATCH ? AND k = ? ORDER BY distance",
        )?;
        let found = statement.query_map(params![bytes(query), i64::try_from(k)?], |row| {
            Ok((row.get::<_, i64>(0)?, 1.0 - row.get::<_, f32>(1)?))
        })?;
        let found = found.map(|found| found.map(|(key, cosine)| (key as usize, cosine)));
        Ok(found.collect::<rusqlite::Result<_>>()?)
    }
}

/// The form of a vector in the database: little-endian f32.
fn bytes(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The type of an extension's entry point.
type EntryPoint = unsafe extern "C" fn(
    *mut ffi::sqlite3,
    *mut *mut c_char,
    *const ffi::sqlite3_api_routines,
) -> c_int;

/// Makes SQLite add sqlite-vec to every database that is opened from now on.
fn register_extension() -> Result<()> {
    // SAFETY: the entry point is linked into this program, and its C declaration has these parameters. sqlite-vec
    // declares it without them.
    let code = unsafe {
        let entry = sqlite_vec::sqlite3_vec_init as *const ();
        ffi::sqlite3_auto_extension(Some(std::mem::transmute::<*const (), EntryPoint>(entry)))
    };
    ensure!(code == ffi::SQLITE_OK, "SQLite does not accept the extension: code {code}");
    Ok(())
}
