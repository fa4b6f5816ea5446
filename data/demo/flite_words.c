/* Speak lines of text with one flite voice and print the time of every token.
 *
 *   flite_words VOICE FOLDER < lines
 *
 * A line is "id<TAB>text".  The speech goes to FOLDER/id.wav; standard output gets one line a token,
 * "id<TAB>token<TAB>start_s<TAB>end_s".  A token is what stood between two blanks of the text; its
 * start is the end of the segment before its first segment, its end is the end of its last segment.
 *
 * Build: cc -O2 -o flite_words flite_words.c -lflite_cmu_us_kal16 -lflite_cmu_us_awb -lflite_cmu_us_rms
 *           -lflite_cmu_us_slt -lflite_usenglish -lflite_cmulex -lflite -lm
 */
#include <flite/flite.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

cst_voice *register_cmu_us_kal16(const char *voxdir);
cst_voice *register_cmu_us_awb(const char *voxdir);
cst_voice *register_cmu_us_rms(const char *voxdir);
cst_voice *register_cmu_us_slt(const char *voxdir);

static cst_voice *load_voice(const char *name) {
    if (!strcmp(name, "kal16")) return register_cmu_us_kal16(NULL);
    if (!strcmp(name, "awb")) return register_cmu_us_awb(NULL);
    if (!strcmp(name, "rms")) return register_cmu_us_rms(NULL);
    if (!strcmp(name, "slt")) return register_cmu_us_slt(NULL);
    fprintf(stderr, "flite_words: no voice %s; there are kal16, awb, rms and slt\n", name);
    exit(2);
}

/* The first (or last) segment of a word, by way of its first (or last) syllable. */
static cst_item *edge_segment(cst_item *word, int last) {
    cst_item *item = item_as(word, "SylStructure");
    int depth;
    for (depth = 0; item && depth < 2; depth++)
        item = last ? item_last_daughter(item) : item_daughter(item);
    return item ? item_as(item, "Segment") : NULL;
}

static void print_tokens(const char *id, cst_utterance *utt) {
    cst_item *token;
    for (token = relation_head(utt_relation(utt, "Token")); token; token = item_next(token)) {
        cst_item *first = item_daughter(token) ? edge_segment(item_daughter(token), 0) : NULL;
        cst_item *last = item_last_daughter(token) ? edge_segment(item_last_daughter(token), 1) : NULL;
        if (!first || !last) {
            fprintf(stderr, "flite_words: %s: no segments for \"%s\"\n", id, item_feat_string(token, "name"));
            exit(1);
        }
        printf("%s\t%s\t%.6f\t%.6f\n", id, item_feat_string(token, "name"),
               item_prev(first) ? item_feat_float(item_prev(first), "end") : 0.0, item_feat_float(last, "end"));
    }
}

int main(int argc, char **argv) {
    char line[4096], path[4096];
    cst_voice *voice;
    if (argc != 3) {
        fprintf(stderr, "usage: flite_words VOICE FOLDER < lines\n");
        return 2;
    }
    flite_init();
    voice = load_voice(argv[1]);
    while (fgets(line, sizeof line, stdin)) {
        char *text = strchr(line, '\t');
        cst_utterance *utt;
        if (!text) continue;
        *text++ = '\0';
        text[strcspn(text, "\n")] = '\0';
        utt = flite_synth_text(text, voice);
        snprintf(path, sizeof path, "%s/%s.wav", argv[2], line);
        if (!utt || cst_wave_save_riff(utt_wave(utt), path) != CST_OK_FORMAT) {
            fprintf(stderr, "flite_words: %s: could not speak or write %s\n", line, path);
            return 1;
        }
        print_tokens(line, utt);
        delete_utterance(utt);
    }
    return 0;
}
