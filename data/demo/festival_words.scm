;; Speak one text with the current voice: the speech goes to `path` as RIFF, standard output gets one line a
;; token, id <TAB> token <TAB> start_s <TAB> end_s.  A token may hold several words ("company" and "'s"),
;; some without segments of their own, so its end is the latest end among its words.
(define (latest_word_end word end)
  (if word
      (let ((word_end (item.feat word "word_end")))
        (latest_word_end (item.next word) (if (> word_end end) word_end end)))
      end))
(define (print_tokens id token)
  (if token
      (begin
        (format t "%s\t%s\t%f\t%f\n" id (item.name token)
                (item.feat token "daughter1.word_start") (latest_word_end (item.daughter1 token) 0))
        (print_tokens id (item.next token)))))
(define (speak_text id path text)
  (let ((utt (eval (list 'Utterance 'Text text))))
    (utt.synth utt)
    (utt.save.wave utt path 'riff)
    (print_tokens id (utt.relation.first utt 'Token))))
