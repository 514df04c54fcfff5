"""The paper's tables: training of a row, scoring of any method by one protocol, what a table needs beside that."""
