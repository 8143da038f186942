"""The words that every stage uses: schemas, code lists, the city file. No I/O except reading that file."""
