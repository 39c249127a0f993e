CREATE TABLE a (
  id int -- comment: with colon
);

INSERT INTO a VALUES (1);
