-- Writes a data set of 100,000 short texts to documents/: reports of weather stations, in 16 files. Many of the texts say
-- the same in other words. `block` is the station, so only reports of the same station can be duplicates.
SET datafusion.execution.soft_max_rows_per_output_file = 6250;
SET datafusion.execution.minimum_parallel_output_files = 1;
SET datafusion.execution.batch_size = 6250;
COPY (
    SELECT
        n AS id,
        n % 2000 AS block,
        concat(
            [ 'It is ', 'The weather is ', 'Conditions are ', 'It stays ', 'Today it is ' ][n / 2000 % 5 + 1],
            [ 'sunny', 'rainy', 'cloudy', 'windy', 'foggy', 'snowy', 'stormy' ][(n * 7919) / 2000 % 7 + 1],
            [ ' in ', ' around ', ' at ' ][n / 10000 % 3 + 1],
            'station ', CAST(n % 2000 AS VARCHAR), ', ',
            CAST((n * 31) % 40 AS VARCHAR), ' degrees, ',
            [ 'and it stays so.', 'with a change tomorrow.', 'warmer than yesterday.', 'colder than yesterday.' ][n / 30000 % 4 + 1]
        ) AS text
    FROM generate_series(0, 99999) AS numbers(n)
) TO 'documents/' STORED AS PARQUET;
