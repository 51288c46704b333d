// A lane's words of K and of V: codes or numbers, and scales.
//#for n 16
var k_a$n$ = 0u;
var k_b$n$ = 0u;
//#endfor
//#for n 4
var k_c$n$ = 0u;
//#endfor
//#for n 8
var v_a$n$ = 0u;
var v_b$n$ = 0u;
//#endfor
