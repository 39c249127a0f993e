---
SELECT '{{ not a template }}';
