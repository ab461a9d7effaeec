-- Embeds the texts of documents/, removes those that are nearly equal to an earlier text of their block, and writes the
-- rest to distinct/.
CREATE EXTERNAL TABLE documents STORED AS PARQUET LOCATION 'documents/';
COPY (SELECT id, block, text, embed(text) AS vector FROM documents) TO 'vectors/' STORED AS PARQUET;
CREATE EXTERNAL TABLE vectors STORED AS PARQUET LOCATION 'vectors/';
COPY (
    SELECT id, block, text, vector
    FROM vectors AS later
    WHERE NOT EXISTS (
        SELECT 1
        FROM vectors AS earlier
        WHERE earlier.block = later.block
            AND earlier.id < later.id
            AND cosine_similarity(earlier.vector, later.vector) > 0.95
    )
) TO 'distinct/' STORED AS PARQUET;
CREATE EXTERNAL TABLE results STORED AS PARQUET LOCATION 'distinct/';
SELECT count(*) AS texts FROM documents;
SELECT count(*) AS distinct_texts FROM results;
